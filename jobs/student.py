"""Stage `student` as a job: ray job submit --working-dir . -- python jobs/student.py CONFIG."""

import sys

from sp2dpo_ray.cli import main

main(["student", *sys.argv[1:]])
