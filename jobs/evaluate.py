"""Stage `evaluate` as a job: ray job submit --working-dir . -- python jobs/evaluate.py CONFIG."""

import sys

from sp2dpo_ray.cli import main

main(["evaluate", *sys.argv[1:]])
