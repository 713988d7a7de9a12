"""Many arms on one cluster: Ray Tune gives each its turn, artifacts say what is done."""
