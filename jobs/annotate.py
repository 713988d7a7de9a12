"""Stage `annotate` as a job: ray job submit --working-dir . -- python jobs/annotate.py CONFIG."""

import sys

from sp2dpo_ray.cli import main

main(["annotate", *sys.argv[1:]])
