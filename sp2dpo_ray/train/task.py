"""What a training worker is given, and the arrays it makes of it.

In: folders of artifacts and the arm's betas. Out: `Pairs`: tokens and reference log-probabilities
from one store, and betas in the same order. Invariant: of the schedule only the column `beta`
gets this far, and every training pair has a finite positive beta and a reference, or its id is in
the error.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from sp2dpo_ray.config import LoraSection, TrainSection
from sp2dpo_ray.core.files import BETAS, EVAL, PAIRS_TABLE, REFERENCE, TRAIN
from sp2dpo_ray.errors import DataError
from sp2dpo_ray.modeling.encode import EncodedPair, Tokens
from sp2dpo_ray.modeling.student import StudentRef

UNBOUNDED = (0.0, float("inf"))


@dataclass(frozen=True, slots=True)
class TrainTask:
    """One arm to train; the same object goes to every worker.

    run, arm: names, for people. key: the hash of all that decides the training. envelope: least
    and greatest beta of the schedule. eval_steps: score the tuning half of the held-out pairs every
    so many steps, 0 for never. ordered: train in the order of the betas' table, without
    shuffling. probe: score all training pairs at the end, and keep no student.
    """

    run: str
    arm: str
    key: str
    pairs: Path
    reference: Path
    output: Path
    student: StudentRef
    lora: LoraSection | None
    options: TrainSection
    envelope: tuple[float, float] = UNBOUNDED
    eval_steps: int = 0
    ordered: bool = False
    probe: bool = False


@dataclass(frozen=True, slots=True)
class Pairs:
    """Encoded pairs with what the loss needs beside them; tensors are (N,) float32.

    weight: of the loss, None for 1. supervised: which pairs learn the chosen response instead of
    the preference; None for no pair.
    """

    encoded: list[EncodedPair]
    ref_chosen: Tensor
    ref_rejected: Tensor
    beta: Tensor
    weight: Tensor | None = None
    supervised: Tensor | None = None

    def __len__(self) -> int:
        return len(self.encoded)


def load_training_pairs(task: TrainTask) -> Pairs:
    """The pairs named in the arm's betas, in the order of the prepared pairs; in that of the table
    where the task is ordered."""
    betas = pq.read_table(task.output / BETAS)
    rows = {row["prompt_id"]: row for row in betas.to_pylist()}
    return _load(task, TRAIN, rows)


def load_pairs_to_score(task: TrainTask) -> Pairs:
    """All held-out pairs, of a probe all training pairs; without betas of their own (they are 1:
    unscaled)."""
    return _load(task, TRAIN if task.probe else EVAL, None)


def _load(task: TrainTask, split: str, rows: dict[str, dict[str, Any]] | None) -> Pairs:
    path = task.pairs / PAIRS_TABLE.format(split=split)
    ids = pq.read_table(path, columns=["prompt_id"])["prompt_id"].to_pylist()
    if rows is not None:
        ids = [name for name in ids if name in rows]
        if len(ids) < len(rows):
            foreign = next(name for name in rows if name not in set(ids))
            raise DataError(
                f"{len(rows) - len(ids)} betas belong to no prepared pair, the first to {foreign}; "
                "run: sp2dpo schedule"
            )
        ids = list(rows) if task.ordered else ids
        _check_betas(rows)
    table = _stored(task.reference / REFERENCE, ids)

    def column(name: str) -> Tensor | None:
        there = rows is not None and name in next(iter(rows.values()), {})
        return torch.tensor([rows[i][name] for i in ids]) if rows and there else None

    beta = column("beta")
    return Pairs(
        _encoded(table),
        *_reference(table),
        torch.ones(len(ids)) if beta is None else beta,
        column("weight"),
        column("supervised"),
    )


def _check_betas(rows: dict[str, dict[str, Any]]) -> None:
    for name, row in rows.items():
        beta = row["beta"]
        if not 0 < beta < float("inf"):  # NaN fails this too
            raise DataError(f"pair {name}: its beta is {beta}, it must be a positive number")


def _stored(path: Path, ids: list[str]) -> pa.Table:
    """The rows of those pairs in the reference store, in their order."""
    table: pa.Table = pq.read_table(path)
    rows = pc.index_in(pa.array(ids, pa.string()), table["prompt_id"].combine_chunks())
    if rows.null_count:
        name = ids[pc.index(pc.is_null(rows), True).as_py()]
        raise DataError(f"pair {name}: has no reference log-probability in {path}")
    return table.take(rows).combine_chunks()


def _encoded(table: pa.Table) -> list[EncodedPair]:
    """The tokens, as views into the table's own memory."""

    def rows(name: str) -> list[Tokens]:
        column = pa.concat_arrays(table[name].chunks or [pa.array([], pa.list_(pa.int32()))])
        offsets, values = column.offsets.to_numpy(), column.values.to_numpy()
        return [values[a:b] for a, b in pairwise(offsets)]

    columns = (rows(name) for name in ("prompt", "chosen", "rejected"))
    return [
        EncodedPair(name, *tokens, tuple(notes))
        for name, *tokens, notes in zip(
            table["prompt_id"].to_pylist(), *columns, table["notes"].to_pylist(), strict=True
        )
    ]


def _reference(table: pa.Table) -> tuple[Tensor, Tensor]:
    chosen, rejected = (
        torch.from_numpy(table[name].to_numpy().copy()) for name in ("chosen_logp", "rejected_logp")
    )
    names = table["prompt_id"].to_pylist()
    for name, ours, theirs in zip(names, chosen.tolist(), rejected.tolist(), strict=True):
        if not (ours <= 0 and theirs <= 0):  # NaN fails this too
            raise DataError(f"pair {name}: its reference log-probabilities are {ours}, {theirs}")
    return chosen, rejected
