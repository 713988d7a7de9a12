"""Strategy `fsdp`: PyTorch's FSDP2 shares out weights, gradients and optimiser states by layer.

In: batches of all workers, equally many. Out: the same updates as one worker's. Invariant: a
checkpoint can be used by another number of workers, since PyTorch's distributed checkpoint cuts it
anew.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from sp2dpo_ray.modeling.forward import Scorer, base_of
from sp2dpo_ray.modeling.layout import Batch
from sp2dpo_ray.modeling.student import trainable
from sp2dpo_ray.train.strategies.base import Setup, Updates

SCHEDULER = "scheduler.pt"
PREFIX = "model."  # of the student inside the scorer


class Sharded:
    """The student in shares, one layer gathered at a time."""

    lockstep = True

    def __init__(self, model: Any, setup: Setup) -> None:
        mesh = init_device_mesh(setup.device.type, (dist.get_world_size(),))
        policy = MixedPrecisionPolicy(param_dtype=setup.autocast, reduce_dtype=torch.float32)
        self._scorer = Scorer(model, setup.options.head_mib << 20, unsure=setup.unsure)
        for layer in base_of(model).get_decoder().layers:
            fully_shard(layer, mesh=mesh, mp_policy=policy)
        fully_shard(self._scorer, mesh=mesh, mp_policy=policy)  # embeddings and head
        self.model = model
        self._updates = Updates(trainable(model), setup)

    def score(self, batch: Batch) -> Tensor:
        logps: Tensor = self._scorer(batch)
        return logps

    def backward(self, loss: Tensor, last: bool) -> None:
        # Each batch's gradients are shared out at once: whole until the step's last batch, they
        # would be as large as all weights in float32. FSDP takes the mean over workers, our loss is
        # a share of the sum.
        (loss * dist.get_world_size()).backward()

    def step(self) -> float:
        return self._updates.apply()

    @property
    def learning_rate(self) -> float:
        return self._updates.learning_rate

    def save(self, folder: Path) -> None:
        dcp.save(self._state(), checkpoint_id=str(folder))
        torch.save(self._updates.scheduler.state_dict(), folder / SCHEDULER)

    def restore(self, folder: Path, world: int) -> None:
        state = self._state()
        dcp.load(state, checkpoint_id=str(folder))
        set_state_dict(
            self._scorer,
            self._updates.optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
            options=StateDictOptions(strict=False),
        )
        state = torch.load(folder / SCHEDULER, weights_only=True)
        self._updates.scheduler.load_state_dict(state)

    def _state(self) -> dict[str, Any]:
        options = StateDictOptions(ignore_frozen_params=True)
        model, optimizer = get_state_dict(self._scorer, self._updates.optimizer, options=options)
        return {"model": model, "optimizer": optimizer}

    def trained(self) -> dict[str, Tensor]:
        options = StateDictOptions(
            full_state_dict=True, cpu_offload=True, ignore_frozen_params=True
        )
        whole = get_model_state_dict(self._scorer, options=options)
        # tied weights come under every name they have
        names = {name for name, weight in self.model.named_parameters() if weight.requires_grad}
        found = {name.removeprefix(PREFIX): tensor for name, tensor in whole.items()}
        return {name: tensor for name, tensor in found.items() if name in names}
