"""Saving and restoring the state of training.

In: model, optimiser, scheduler, step. Out: a folder of three files. Random states need no place
here: every step seeds itself from (seed, step, rank). Invariant: a restored run continues as if it
had not been interrupted, and never from a checkpoint that is not what was written.
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

from sp2dpo_ray.core.hashing import sha256_file
from sp2dpo_ray.errors import TrainingError

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
        files = {name: sha256_file(folder / name) for name in (ADAPTER, OPTIMIZER)}
        (folder / POSITION).write_text(json.dumps({"step": step, "files": files}))
        yield Checkpoint.from_directory(folder)


def restore_state(
    checkpoint: Checkpoint, model: Any, optimizer: Any, scheduler: Any
) -> tuple[int, str]:
    """Put a saved state back; returns the number of steps that were done, and what to tell of it.

    A checkpoint that is not whole is passed over for the one before. Raises TrainingError where
    none is whole.
    """
    faults = []
    for candidate in (checkpoint, *_earlier(checkpoint)):
        with candidate.as_directory() as name:
            folder = Path(name)
            if fault := _fault(folder):
                faults.append(f"checkpoint {Path(candidate.path).name} is not whole ({fault})")
                continue
            set_peft_model_state_dict(model, load_file(folder / ADAPTER))
            state = torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True)
            optimizer.load_state_dict(state["optimizer"])
            scheduler.load_state_dict(state["scheduler"])
            step = int(json.loads((folder / POSITION).read_text())["step"])
            note = f"{'; '.join(faults)}: going on from step {step}" if faults else ""
            return step, note
    raise TrainingError(
        f"{'; '.join(faults)}. Remove {Path(checkpoint.path).parent} to train from the beginning"
    )


def _earlier(checkpoint: Checkpoint) -> list[Checkpoint]:
    """Checkpoints of the same run before this one, the latest first; their names begin with the
    time."""
    here = Path(checkpoint.path)
    names = sorted(path.name for path in here.parent.glob("checkpoint_*") if path.name < here.name)
    return [Checkpoint(str(here.parent / name), checkpoint.filesystem) for name in reversed(names)]


def _fault(folder: Path) -> str:
    """What is wrong with a checkpoint's files; '' if nothing is."""
    try:
        files = json.loads((folder / POSITION).read_text())["files"]
        wrong = [name for name, digest in files.items() if sha256_file(folder / name) != digest]
    except (OSError, ValueError, KeyError) as error:
        return f"{type(error).__name__}: {error}"
    return f"{wrong[0]} is altered" if wrong else ""
