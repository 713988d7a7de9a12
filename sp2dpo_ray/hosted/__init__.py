"""Teachers that are a language model in our own process; torch lives here, not in `teachers`."""
