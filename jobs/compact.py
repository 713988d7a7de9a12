"""Stage `compact` as a job: ray job submit --working-dir . -- python jobs/compact.py CONFIG."""

import sys

from sp2dpo_ray.cli import main

main(["compact", *sys.argv[1:]])
