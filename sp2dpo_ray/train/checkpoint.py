"""Saving and restoring the state of training.

In: a strategy and the number of steps done. Out: a folder a checkpoint, to which each worker adds
what it holds and a list of its files with their hashes. Random states need no place here: every
step seeds itself from (seed, step, rank). Invariant: a restored run continues as if it had not been
interrupted, and never from a checkpoint that is not what was written.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import torch.distributed as dist
from ray.train import Checkpoint

from sp2dpo_ray.core.hashing import sha256_file, sha256_hex
from sp2dpo_ray.errors import TrainingError
from sp2dpo_ray.train.loss import Loss
from sp2dpo_ray.train.step import Team
from sp2dpo_ray.train.strategies import Strategy

PART = "part-{rank}.json"  # written last


def scratch(output: Path, rank: int) -> Path:
    """Where this worker writes checkpoints before they are carried to the arm's folder. What a
    killed worker of the same arm left there is removed: it may be as large as the student."""
    arm = sha256_hex([os.getuid(), str(output)])[:16]
    folder = Path(tempfile.gettempdir()) / f"sp2dpo-{arm}-{rank}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def save_state(
    strategy: Strategy, loss: Loss, step: int, team: Team, place: Path
) -> Checkpoint | None:
    """This worker's share of the state as a Ray Train checkpoint, in a folder in `place` that
    whoever uploads it removes; None where the share is nothing."""
    folder = place / f"step-{step}"
    folder.mkdir()
    strategy.save(folder)
    files = {
        str(path.relative_to(folder)): sha256_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    if not files:
        folder.rmdir()
        return None
    parts = team.world if team.lockstep else 1
    content = {"step": step, "world": team.world, "parts": parts, "files": files}
    (folder / PART.format(rank=team.rank)).write_text(json.dumps(content | loss.state()))
    return Checkpoint.from_directory(folder)


def restore_state(checkpoint: Checkpoint, strategy: Strategy, loss: Loss) -> tuple[int, str]:
    """Put a saved state back; returns the number of steps that were done, and what to tell of it.

    A checkpoint that is not whole is passed over for the one before. Raises TrainingError where
    none is whole.
    """
    faults = []
    for candidate in (checkpoint, *_earlier(checkpoint)):
        with candidate.as_directory() as name:
            folder = Path(name)
            fault = _fault(folder)
            if dist.is_initialized():  # a worker that sees another disk must not go its own way
                everyone: list[str] = [""] * dist.get_world_size()
                dist.all_gather_object(everyone, fault)
                fault = next((each for each in everyone if each), "")
            if fault:
                faults.append(f"checkpoint {Path(candidate.path).name} is not whole ({fault})")
                continue
            content = json.loads((folder / PART.format(rank=0)).read_text())
            strategy.restore(folder, int(content["world"]))
            loss.restore(content)
            step = int(content["step"])
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
        first = json.loads((folder / PART.format(rank=0)).read_text())
        for rank in range(first["parts"]):
            part = json.loads((folder / PART.format(rank=rank)).read_text())
            if part["step"] != first["step"]:
                return f"its parts are of steps {first['step']} and {part['step']}"
            for name, digest in part["files"].items():
                if sha256_file(folder / name) != digest:
                    return f"{name} is altered"
    except (OSError, ValueError, KeyError) as error:
        return f"{type(error).__name__}: {error}"
    return ""
