"""The page of a run: tables and figures in one self-contained file."""
