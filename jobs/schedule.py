"""Stage `schedule` as a job: ray job submit --working-dir . -- python jobs/schedule.py CONFIG."""

import sys

from sp2dpo_ray.cli import main

main(["schedule", *sys.argv[1:]])
