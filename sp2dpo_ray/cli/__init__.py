"""The command line: one command a stage, and commands that read what stages published."""

from sp2dpo_ray.cli.commands import main

__all__ = ["main"]
