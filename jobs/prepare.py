"""Stage `prepare` as a job: ray job submit --working-dir . -- python jobs/prepare.py CONFIG."""

import sys

from sp2dpo_ray.cli import main

main(["prepare", *sys.argv[1:]])
