"""Stage `report` as a job: ray job submit --working-dir . -- python jobs/report.py CONFIG."""

import sys

from sp2dpo_ray.cli import main

main(["report", *sys.argv[1:]])
