"""Stage `plan` as a job: ray job submit --working-dir . -- python jobs/plan.py CONFIG."""

import sys

from sp2dpo_ray.cli import main

main(["plan", *sys.argv[1:]])
