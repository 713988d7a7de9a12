"""sp2dpo_ray: per-pair temperature DPO on Ray."""

__version__ = "0.1.0"
