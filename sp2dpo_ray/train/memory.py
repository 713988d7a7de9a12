"""Whether activations must be computed again on the way back, measured instead of guessed.

In: the model, the largest batch that will come. Out: a decision with its figures. Invariant:
checkpointing changes memory and time and no number, dropout included.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from sp2dpo_ray.errors import TrainingError
from sp2dpo_ray.modeling.forward import base_of

SHARE = 0.7  # of the free memory that activations may take; gradients and kernels want some too


@dataclass(frozen=True, slots=True)
class Decision:
    """on: whether to checkpoint. needed, free: bytes; 0 where nothing was measured."""

    on: bool
    needed: int = 0
    free: int = 0


def decide(
    setting: str,
    loss_of_largest: Any,
    model: Any,
    device: torch.device,
    *,
    share: float = 1.0,
    lockstep: bool = False,
) -> Decision:
    """Carry out `train.gradient_checkpointing`: on, off, or what a first forward pass says.

    loss_of_largest: computes the loss of the batch that needs the most memory, with a graph. share:
    of the device that is this worker's; others on it measure the same free memory. lockstep:
    whether the others wait for this worker in the middle of a pass; TrainingError then where it has
    no memory for it.
    """
    decision = Decision(setting == "on")
    if setting == "auto":
        free = int(share * free_bytes(device))  # before the pass: the allocator keeps what it took
        try:
            needed = saved_bytes(loss_of_largest, model)
        except torch.OutOfMemoryError as error:
            if lockstep:  # the others could not be told, and would wait for ever
                raise TrainingError(
                    "no memory for one forward pass; set train.gradient_checkpointing: on, or "
                    "lower train.tokens_per_batch"
                ) from error
            needed = free
        decision = Decision(needed > SHARE * free, needed, free)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    if _anywhere(decision.on, device):
        decision = replace(decision, on=True)
        base_of(model).gradient_checkpointing_enable({"use_reentrant": False})
    return decision


def _anywhere(on: bool, device: torch.device) -> bool:
    """Whether any worker must: those that share out weights gather them in one order."""
    if not dist.is_initialized():
        return on
    flag = torch.tensor(float(on), device=device)
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag)


def saved_bytes(forward: Any, model: torch.nn.Module) -> int:
    """Bytes that a forward pass keeps for its backward pass; the model's own weights, views of them
    too, are there anyway and not counted. Weights that are gathered from other workers are, since
    they are in use when the pass is."""
    own = {_here(weight).untyped_storage().data_ptr() for weight in model.parameters()}
    seen: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    random_state = torch.get_rng_state()
    try:
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            kept = forward()  # held while its storages are counted: an address must not come twice
    finally:
        torch.set_rng_state(random_state)
    del kept
    return sum(seen.values())


def _here(weight: Tensor) -> Tensor:
    """What this worker holds of a weight that may be shared out."""
    return weight.to_local() if isinstance(weight, DTensor) else weight


def free_bytes(device: torch.device) -> int:
    """Memory that this worker may still take."""
    if device.type == "cuda":
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + idle
    lines = Path("/proc/meminfo").read_text().splitlines()
    (available,) = (line for line in lines if line.startswith("MemAvailable:"))
    return int(available.split()[1]) * 1024 // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
