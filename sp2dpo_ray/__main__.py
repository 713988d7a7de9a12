"""`python -m sp2dpo_ray`: the command line."""

from sp2dpo_ray.cli import main

main()
