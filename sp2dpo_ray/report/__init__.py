"""The page of a run: figures and tables in one file, and the pairs beside it in pieces."""
