"""Stage `export` as a job: ray job submit --working-dir . -- python jobs/export.py CONFIG."""

import sys

from sp2dpo_ray.cli import main

main(["export", *sys.argv[1:]])
