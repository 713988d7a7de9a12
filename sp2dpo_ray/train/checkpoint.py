"""Saving and restoring the state of training.

In: model, optimiser, scheduler, step. Out: a folder of two files. Random states need no place here:
every step seeds itself from (seed, step, rank). Invariant: a restored run continues as if it had
not been interrupted.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from ray.train import Checkpoint
from safetensors.torch import load_file, save_file

ADAPTER, OPTIMIZER, POSITION = "adapter.safetensors", "optimizer.pt", "position.json"


@contextmanager
def saved_state(model: Any, optimizer: Any, scheduler: Any, step: int) -> Iterator[Checkpoint]:
    """The state as a Ray Train checkpoint, in a folder that lives as long as the block."""
    with tempfile.TemporaryDirectory(prefix="sp2dpo-checkpoint-") as name:
        folder = Path(name)
        state = {key: value.contiguous() for key, value in get_peft_model_state_dict(model).items()}
        save_file(state, folder / ADAPTER)
        torch.save(
            {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()},
            folder / OPTIMIZER,
        )
        (folder / POSITION).write_text(json.dumps({"step": step}))
        yield Checkpoint.from_directory(folder)


def restore_state(checkpoint: Checkpoint, model: Any, optimizer: Any, scheduler: Any) -> int:
    """Put a saved state back; returns the number of steps that were done."""
    with checkpoint.as_directory() as name:
        folder = Path(name)
        set_peft_model_state_dict(model, load_file(folder / ADAPTER))
        state = torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True)
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        return int(json.loads((folder / POSITION).read_text())["step"])
