"""Stage `reference` as a job: ray job submit --working-dir . -- python jobs/reference.py CONFIG."""

import sys

from sp2dpo_ray.cli import main

main(["reference", *sys.argv[1:]])
