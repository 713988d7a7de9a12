"""Strategy `ddp`: every worker holds the whole student and adds up the gradients with the others.

In: gradients of this worker's batches. Out: their sum over workers, in one message a step.
Invariant: nothing waits for another worker between two steps, so workers may cut their pairs into
batches as they like, and their number may change from one checkpoint to the next.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from sp2dpo_ray.modeling.forward import Scorer
from sp2dpo_ray.modeling.layout import Batch
from sp2dpo_ray.modeling.student import trainable
from sp2dpo_ray.train.strategies.base import Setup, Updates

WEIGHTS, OPTIMIZER = "trained.safetensors", "optimizer.pt"


class Replicated:
    """The whole student on each worker."""

    lockstep = False

    def __init__(self, model: Any, setup: Setup) -> None:
        self.model = model
        self._scorer = Scorer(
            model, setup.options.head_mib << 20, setup.autocast, unsure=setup.unsure
        )
        self._parameters = trainable(model)
        self._updates = Updates(self._parameters, setup)

    def score(self, batch: Batch) -> Tensor:
        logps: Tensor = self._scorer(batch)
        return logps

    def backward(self, loss: Tensor, last: bool) -> None:
        loss.backward()

    def step(self) -> float:
        reduce_gradients(self._parameters)
        return self._updates.apply()

    @property
    def learning_rate(self) -> float:
        return self._updates.learning_rate

    def save(self, folder: Path) -> None:
        if dist.is_initialized() and dist.get_rank() != 0:
            return  # all workers hold the same
        save_file(self._named(), folder / WEIGHTS)
        state = {
            "optimizer": self._updates.optimizer.state_dict(),
            "scheduler": self._updates.scheduler.state_dict(),
        }
        torch.save(state, folder / OPTIMIZER)

    def restore(self, folder: Path, world: int) -> None:
        self.model.load_state_dict(load_file(folder / WEIGHTS), strict=False)
        state = torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True)
        self._updates.optimizer.load_state_dict(state["optimizer"])
        self._updates.scheduler.load_state_dict(state["scheduler"])

    def trained(self) -> dict[str, Tensor]:
        if dist.is_initialized() and dist.get_rank() != 0:
            return {}
        return self._named()

    def _named(self) -> dict[str, Tensor]:
        return {
            name: parameter.detach().cpu().contiguous()
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad
        }


def reduce_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """Add the gradients of all workers, in place and in one message."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:  # a worker without pairs in the last step still takes part
            parameter.grad = torch.zeros_like(parameter)
    flat = torch.cat([parameter.grad.flatten() for parameter in parameters])
    dist.all_reduce(flat)
    offset = 0
    for parameter in parameters:
        parameter.grad.copy_(flat[offset : offset + parameter.numel()].view_as(parameter))
        offset += parameter.numel()
