"""Probes: short trainings on a part of the pairs whose margins tell of the others.

In: a run. Out: `probes/<name>/`, the margins of all training pairs under each probe's student.
Invariant: a probe is made once for all arms that ask, and which pairs it saw is drawn by their ids.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sp2dpo_ray.console import say
from sp2dpo_ray.core.arms import parse_arm
from sp2dpo_ray.core.files import BETAS, HELD_OUT
from sp2dpo_ray.core.hashing import uniform_draws
from sp2dpo_ray.core.schedule.ensemble import Floats
from sp2dpo_ray.run import Run
from sp2dpo_ray.stages.reference import reference_folder
from sp2dpo_ray.stages.student import student_ref
from sp2dpo_ray.train.launch import train_arm
from sp2dpo_ray.train.task import TrainTask

MARGINS = "margins.parquet"
SEED_PAIRS = 2000  # of the probe for implicit margins, and at most a fifth of all pairs
SEED_SHARE = 0.2
IMPLICIT_BETA = 0.1
HALVES = 3  # times that the pairs are cut in two
DIFFICULTY_BETA = 0.01


def implicit_margins(run: Run, ids: list[str]) -> Floats:
    """Margins under a student trained on a drawn part; (N,), nats (BeeS's implicit margin)."""
    draws = uniform_draws(ids, seed=0, purpose="probe-seed-pairs")
    seen = np.argsort(draws, kind="stable")[: min(SEED_PAIRS, max(1, int(SEED_SHARE * len(ids))))]
    return _probe(run, "implicit", ids, seen, IMPLICIT_BETA, seed=0)


def difficulties(run: Run, ids: list[str]) -> Floats:
    """Mean DPO loss of each pair under the students that did not train on it; (N,) (Selective DPO:
    three cuts in two halves. Its five checkpoints a student are one here, the last)."""
    losses = np.zeros(len(ids))
    for cut in range(HALVES):
        draws = uniform_draws(ids, seed=cut, purpose="probe-halves")
        order = np.argsort(draws, kind="stable")
        for half, seen in enumerate(np.array_split(order, 2)):
            margin = _probe(run, f"half-{cut}-{half}", ids, seen, DIFFICULTY_BETA, seed=cut)
            others = np.setdiff1d(order, seen)
            losses[others] += np.logaddexp(0, -DIFFICULTY_BETA * margin[others]) / HALVES
    return losses


def _probe(run: Run, name: str, ids: list[str], seen: Floats, beta: float, seed: int) -> Floats:
    """The margin of every pair under a student trained on those at `seen`; (N,)."""
    with run.alone("probes", name):  # arms of a sweep may ask for it at once
        return _made(run, name, ids, seen, beta, seed)


def _made(run: Run, name: str, ids: list[str], seen: Floats, beta: float, seed: int) -> Floats:
    arm = parse_arm(f"dpo:{beta}@{seed}")
    folder = run.path("probes", name)
    inputs = {
        "prepare": run.path("pairs"), "student": run.path("student"),
        "reference": reference_folder(run),
    }  # fmt: skip
    chosen = sorted(ids[place] for place in seen)
    settings = {"probe": name, "pairs": chosen, **run.config.training(arm)}
    provenance = run.provenance("probe", settings, inputs)
    if run.finished(folder, provenance) is None:
        say(f"probe {name}: training on {len(chosen)} of {len(ids)} pairs")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        betas = {"prompt_id": chosen, "beta": np.full(len(chosen), beta)}
        pq.write_table(pa.table(betas), folder / BETAS)
        task = TrainTask(
            run.config.run.name, f"probe {name}", provenance.key, run.path("pairs"),
            reference_folder(run), folder, student_ref(run), run.config.student.lora,
            run.config.train_of(arm).model_copy(update={"loss": "logistic"}), probe=True,
        )  # fmt: skip
        train_arm(task, follow=lambda row: None)
        (folder / HELD_OUT).rename(folder / MARGINS)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        run.seal(folder, provenance, {"pairs": len(chosen)})
    return _margins(folder / MARGINS, ids)


def _margins(path: Path, ids: list[str]) -> Floats:
    table = pq.read_table(path, columns=["prompt_id", "margin"])
    of = dict(zip(table["prompt_id"].to_pylist(), table["margin"].to_pylist(), strict=True))
    return np.array([of[name] for name in ids])
