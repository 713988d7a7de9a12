"""Stage `sweep` as a job: ray job submit --working-dir . -- python jobs/sweep.py CONFIG."""

import sys

from sp2dpo_ray.cli import main

main(["sweep", *sys.argv[1:]])
