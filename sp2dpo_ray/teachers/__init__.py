"""Teachers: one file a provider behind the protocol of `base`."""
