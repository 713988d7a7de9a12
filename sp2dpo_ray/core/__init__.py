"""The method itself as pure functions: no Ray, no torch, no SDK, no configuration."""
