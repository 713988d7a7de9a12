"""The distilled predictor: what a panel would say of a pair, without asking it."""
