"""All trials of the testbed on Ray: a student is taught once a seed, and goes into every world.

In: worlds, seeds, arms. Out: what was measured, one file a trial. Invariant: a trial whose file is
there and says the same plan is not run again.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
import torch

from sp2dpo_ray.console import bar
from sp2dpo_ray.core.artifact import write_atomically
from sp2dpo_ray.core.hashing import sha256_hex
from sp2dpo_ray.lab.learner import TEACH_STEPS, new_student, taught_student
from sp2dpo_ray.lab.trial import COPIES, TRAINING, Measured, run_trial
from sp2dpo_ray.lab.world import World

Trials = dict[str, dict[int, dict[str, Measured]]]  # world -> seed -> arm


@dataclass(frozen=True, slots=True)
class Plan:
    """What the testbed runs."""

    worlds: tuple[World, ...]
    seeds: tuple[int, ...]
    arms: tuple[str, ...]
    teach_steps: int = TEACH_STEPS

    def key(self, world: World, seed: int) -> str:
        how = [self.teach_steps, COPIES, TRAINING.model_dump(mode="json")]
        return sha256_hex([asdict(world), seed, list(self.arms), how])


def run_trials(plan: Plan, folder: Path) -> Trials:
    """Every world with every seed; files go to `folder`. Each trial takes one core."""
    folder.mkdir(parents=True, exist_ok=True)
    units = [(world, seed) for seed in plan.seeds for world in plan.worlds]
    todo = [unit for unit in units if _read(_path(folder, *unit), plan.key(*unit)) is None]
    taught = {seed: _teach.remote(seed, plan.teach_steps) for seed in {seed for _, seed in todo}}
    waiting = {
        _trial.remote(taught[seed], world, seed, plan.arms): (world, seed) for world, seed in todo
    }
    with bar("lab: trials", len(units)) as advance:
        advance(len(units) - len(todo), "teaching students")
        while waiting:
            (done,), _ = ray.wait(list(waiting), num_returns=1)
            world, seed = waiting.pop(done)
            content = {"key": plan.key(world, seed), "arms": ray.get(done)}
            write_atomically(_path(folder, world, seed), json.dumps(content))
            advance(1, f"{world.name}, seed {seed}")
    found: Trials = {world.name: {} for world in plan.worlds}
    for world, seed in units:
        arms = _read(_path(folder, world, seed), plan.key(world, seed)) or {}
        found[world.name][seed] = {name: Measured.from_json(row) for name, row in arms.items()}
    return found


def _path(folder: Path, world: World, seed: int) -> Path:
    return folder / f"{world.name}-{seed}.json"


def _read(path: Path, key: str) -> dict[str, Any] | None:
    if not path.exists():
        return None
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content["arms"] if content["key"] == key else None


@ray.remote(num_cpus=1)
def _teach(seed: int, steps: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    return {
        name: weight.numpy() for name, weight in taught_student(seed, steps).state_dict().items()
    }


@ray.remote(num_cpus=1)
def _trial(
    taught: dict[str, Any], world: World, seed: int, arms: tuple[str, ...]
) -> dict[str, Any]:
    torch.set_num_threads(1)
    student = new_student()
    student.load_state_dict({name: torch.tensor(weight) for name, weight in taught.items()})
    found = run_trial(student.eval(), world, seed, arms)
    return {name: measured.json for name, measured in found.items()}
