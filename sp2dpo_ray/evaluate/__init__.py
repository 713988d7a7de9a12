"""Scores of trained arms, and what can honestly be said of their differences."""
