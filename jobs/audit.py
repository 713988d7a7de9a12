"""Stage `audit` as a job: ray job submit --working-dir . -- python jobs/audit.py CONFIG."""

import sys

from sp2dpo_ray.cli import main

main(["audit", *sys.argv[1:]])
