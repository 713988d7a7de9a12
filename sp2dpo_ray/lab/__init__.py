"""The testbed: a small world where the truth is known, and every arm trained in it."""
