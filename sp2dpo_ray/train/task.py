"""What a training worker is given, and the arrays it makes of it.

In: folders of artifacts and the arm's betas. Out: `Pairs`, encoded, with reference
log-probabilities and betas in the same order. Invariant: of the schedule only the column `beta`
gets this far, and every training pair has a finite positive beta and a reference, or its id is in
the error.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from sp2dpo_ray.config import LoraSection, TrainSection
from sp2dpo_ray.core.files import BETAS, EVAL, PAIRS_TABLE, REFERENCE, TRAIN
from sp2dpo_ray.core.pairs import pairs_from
from sp2dpo_ray.errors import DataError
from sp2dpo_ray.modeling.encode import EncodedPair, encode_pairs
from sp2dpo_ray.modeling.student import StudentRef


@dataclass(frozen=True, slots=True)
class TrainTask:
    """One arm to train; the same object goes to every worker."""

    pairs: Path
    reference: Path
    output: Path
    student: StudentRef
    lora: LoraSection
    options: TrainSection


@dataclass(frozen=True, slots=True)
class Pairs:
    """Encoded pairs with what the loss needs beside them; tensors are (N,) float32."""

    encoded: list[EncodedPair]
    ref_chosen: Tensor
    ref_rejected: Tensor
    beta: Tensor

    def __len__(self) -> int:
        return len(self.encoded)


def load_training_pairs(task: TrainTask, tokenizer: Any) -> Pairs:
    """The pairs named in the arm's betas, in the order of the prepared pairs."""
    betas = pq.read_table(task.output / BETAS)
    beta_of = dict(zip(betas["prompt_id"].to_pylist(), betas["beta"].to_pylist(), strict=True))
    return _load(task, TRAIN, tokenizer, beta_of)


def load_eval_pairs(task: TrainTask, tokenizer: Any) -> Pairs:
    """All held-out pairs; they have no beta of their own (it is 1: unscaled)."""
    return _load(task, EVAL, tokenizer, None)


def _load(task: TrainTask, split: str, tokenizer: Any, beta_of: dict[str, float] | None) -> Pairs:
    pairs = pairs_from(pq.read_table(task.pairs / PAIRS_TABLE.format(split=split)))
    if beta_of is not None:
        pairs = [pair for pair in pairs if pair.prompt_id in beta_of]
        if len(pairs) < len(beta_of):
            raise DataError(f"{len(beta_of) - len(pairs)} betas belong to no prepared pair")
    ids = [pair.prompt_id for pair in pairs]
    chosen, rejected = _reference(task.reference / REFERENCE, ids)
    encoded = encode_pairs(
        pairs,
        tokenizer,
        max_length=task.options.max_length,
        max_prompt_length=task.options.max_prompt_length,
    )
    beta = torch.tensor([1.0 if beta_of is None else beta_of[name] for name in ids])
    return Pairs(encoded, chosen, rejected, beta)


def _reference(path: Path, ids: list[str]) -> tuple[Tensor, Tensor]:
    table: pa.Table = pq.read_table(path)
    place = {name: row for row, name in enumerate(table["prompt_id"].to_pylist())}
    missing = [name for name in ids if name not in place]
    if missing:
        raise DataError(f"pair {missing[0]}: has no reference log-probability in {path}")
    rows = torch.tensor([place[name] for name in ids], dtype=torch.long)
    chosen, rejected = (
        torch.from_numpy(table[name].to_numpy().copy())[rows]
        for name in ("chosen_logp", "rejected_logp")
    )
    for name, ours, theirs in zip(ids, chosen.tolist(), rejected.tolist(), strict=True):
        if not (ours <= 0 and theirs <= 0):  # NaN fails this too
            raise DataError(f"pair {name}: its reference log-probabilities are {ours}, {theirs}")
    return chosen, rejected
