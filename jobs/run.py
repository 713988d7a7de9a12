"""Stage `run` as a job: ray job submit --working-dir . -- python jobs/run.py CONFIG."""

import sys

from sp2dpo_ray.cli import main

main(["run", *sys.argv[1:]])
