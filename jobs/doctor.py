"""Stage `doctor` as a job: ray job submit --working-dir . -- python jobs/doctor.py CONFIG."""

import sys

from sp2dpo_ray.cli import main

main(["doctor", *sys.argv[1:]])
