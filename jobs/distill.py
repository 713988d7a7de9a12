"""Stage `distill` as a job: ray job submit --working-dir . -- python jobs/distill.py CONFIG."""

import sys

from sp2dpo_ray.cli import main

main(["distill", *sys.argv[1:]])
