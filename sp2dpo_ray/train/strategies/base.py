"""What the training loop asks of a strategy, and what a strategy is made with.

In: a student with its trained parameters marked. Out: log-probabilities, gradients that are means
over all workers' pairs, updates, and states that can be put back. Invariant: the numbers are those
of one worker that holds everything, but for rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import get_cosine_schedule_with_warmup

from sp2dpo_ray.config import TrainSection
from sp2dpo_ray.core.methods import METHODS
from sp2dpo_ray.errors import ConfigError
from sp2dpo_ray.modeling.layout import Batch


@dataclass(frozen=True, slots=True)
class Setup:
    """steps: optimiser steps of the whole training, which the learning rate is planned over.
    autocast: what whole-precision weights compute in; None: in their own type."""

    options: TrainSection
    device: torch.device
    steps: int
    autocast: torch.dtype | None = None

    @property
    def unsure(self) -> bool:
        """Whether the loss counts only tokens that the student is unsure of."""
        return METHODS[self.options.loss].tokens


class Strategy(Protocol):
    """One worker's student, its optimiser, and how the workers meet."""

    lockstep: bool
    """Whether every forward and backward pass is a meeting, so that all workers must make equally
    many of them."""
    model: Any
    """The student that the passes run through; of its weights a worker may hold a share."""

    def score(self, batch: Batch) -> Tensor:
        """Log-probabilities of a batch's rows; (2P,). (3, 2P), as `unsure_logps` has it, for a loss
        that counts tokens."""

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add a batch's gradients, of a loss that is summed over workers. last: the step's last."""

    def step(self) -> float:
        """Clip and update; returns the gradient's norm over all workers before clipping."""

    @property
    def learning_rate(self) -> float: ...

    def save(self, folder: Path) -> None:
        """Write this worker's share of the state; all workers call it, each with its folder."""

    def restore(self, folder: Path, world: int) -> None:
        """Put back what `world` workers saved, from the one folder that has all their files.

        Raises TrainingError where another number of workers cannot use it.
        """

    def trained(self) -> dict[str, Tensor]:
        """The trained parameters, whole, on the CPU, by their names; {} but on rank 0."""


def make_optimizer(parameters: list[torch.nn.Parameter], setup: Setup) -> Any:
    """`train.optimizer` over those parameters."""
    options = setup.options
    settings: dict[str, Any] = {"lr": options.learning_rate, "weight_decay": options.weight_decay}
    if options.optimizer == "adamw":
        return torch.optim.AdamW(parameters, **settings)
    try:
        from bitsandbytes.optim import PagedAdamW32bit
    except ImportError as error:
        raise quantization_missing("train.optimizer: paged_adamw_32bit") from error
    return PagedAdamW32bit(parameters, **settings)


def quantization_missing(asked: str) -> ConfigError:
    return ConfigError(
        f"{asked} needs bitsandbytes and a CUDA GPU; pip install 'sp2dpo-ray[quantized]' on every "
        "GPU node"
    )


def make_scheduler(optimizer: Any, setup: Setup) -> Any:
    """Linear warmup, then a cosine to 0."""
    warmup = round(setup.options.warmup_ratio * setup.steps)
    return get_cosine_schedule_with_warmup(optimizer, warmup, setup.steps)


class Updates:
    """Clipping, optimiser and schedule over the trained parameters, or this worker's shares."""

    def __init__(self, parameters: list[torch.nn.Parameter], setup: Setup) -> None:
        self._parameters = parameters
        self.optimizer = make_optimizer(parameters, setup)
        self.scheduler = make_scheduler(self.optimizer, setup)
        self._max_norm = setup.options.max_grad_norm

    def apply(self) -> float:
        """Clip and update; returns the gradient's norm before clipping."""
        norm: Any = torch.nn.utils.clip_grad_norm_(
            self._parameters, self._max_norm, error_if_nonfinite=True
        )
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step()
        return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)

    @property
    def learning_rate(self) -> float:
        return float(self.scheduler.get_last_lr()[0])
