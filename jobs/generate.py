"""Stage `generate` as a job: ray job submit --working-dir . -- python jobs/generate.py CONFIG."""

import sys

from sp2dpo_ray.cli import main

main(["generate", *sys.argv[1:]])
