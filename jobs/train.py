"""Stage `train` as a job: ray job submit --working-dir . -- python jobs/train.py CONFIG."""

import sys

from sp2dpo_ray.cli import main

main(["train", *sys.argv[1:]])
