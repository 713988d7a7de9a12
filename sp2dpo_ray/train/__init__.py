"""Training: one arm with Ray Train, and its score on the held-out pairs."""
