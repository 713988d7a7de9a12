"""Losses on log-probabilities: torch only, no model, no data, no Ray."""
