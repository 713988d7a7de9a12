"""How a student's weights lie on the workers: whole on each, or in shares.

In: `train.strategy`. Out: the class of that name. Invariant: a row names a place and imports it
only when asked, since DeepSpeed is an extra of its own.
"""

from __future__ import annotations

import importlib
from typing import Any

from sp2dpo_ray.errors import ConfigError
from sp2dpo_ray.train.strategies.base import Setup, Strategy

STRATEGIES = {
    "ddp": "sp2dpo_ray.train.strategies.replicated:Replicated",
    "zero2": "sp2dpo_ray.train.strategies.zero:Zero2",
    "zero3": "sp2dpo_ray.train.strategies.zero:Zero3",
    "fsdp": "sp2dpo_ray.train.strategies.sharded:Sharded",
}


def strategy_of(name: str, model: Any, setup: Setup) -> Strategy:
    """The strategy at work on this worker; every worker of the training makes one."""
    module, _, made = STRATEGIES[name].partition(":")
    try:
        kind = getattr(importlib.import_module(module), made)
    except ModuleNotFoundError as error:
        if error.name != "deepspeed":
            raise
        raise ConfigError(
            f"train.strategy: {name} needs DeepSpeed; pip install 'sp2dpo-ray[deepspeed]' on every "
            "node, or train.strategy: ddp or fsdp"
        ) from error
    strategy: Strategy = kind(model, setup)
    return strategy


__all__ = ["STRATEGIES", "Setup", "Strategy", "strategy_of"]
