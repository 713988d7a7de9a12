"""What a predictor learns: the ensemble's answer about each pair, and about the pair turned round.

In: the grid of calls. Out: arrays, one row a pair. Invariant: only pairs that the whole panel
answered; nothing that was predicted is learned from.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sp2dpo_ray.core.schedule import ensemble
from sp2dpo_ray.core.schedule.columns import whole_pairs
from sp2dpo_ray.core.schedule.ensemble import Floats
from sp2dpo_ray.core.schedule.grid import Grid, predicted
from sp2dpo_ray.core.taxonomy import CATEGORIES


@dataclass(frozen=True, slots=True)
class Targets:
    """ids: (N,). gap: effective gap, median over prompts, then mean over teachers. confidence: the
    same of confidences. turned_gap: the effective gap with chosen and rejected exchanged, where a
    call's confidence in the order is one less its own. categories: (N, 6), shares of the calls."""

    ids: pa.Array
    gap: Floats
    confidence: Floats
    turned_gap: Floats
    categories: Floats

    def __len__(self) -> int:
        return len(self.gap)

    @property
    def digest(self) -> str:
        """SHA-256 of ids and values."""
        found = hashlib.sha256(json.dumps(self.ids.to_pylist()).encode())
        for values in (self.gap, self.confidence, self.turned_gap, self.categories):
            found.update(np.ascontiguousarray(values, "<f8").tobytes())
        return found.hexdigest()

    def take(self, rows: NDArray[Any]) -> Targets:
        return Targets(
            self.ids.take(pa.array(rows)), self.gap[rows], self.confidence[rows],
            self.turned_gap[rows], self.categories[rows],
        )  # fmt: skip


def told_by_teachers(grid: Grid) -> Grid:
    """The pairs that the whole panel answered itself."""
    return grid.where(whole_pairs(grid) & ~predicted(grid))


def targets_of(grid: Grid) -> Targets:
    """The targets of `told_by_teachers`, in the grid's order."""
    whole = told_by_teachers(grid)
    codes = whole.category.reshape(len(whole), -1)
    counts = (codes[:, :, None] == np.arange(len(CATEGORIES))).sum(axis=1)
    return Targets(
        whole.ids,
        _ensembled(ensemble.effective_gap(whole.magnitude, whole.confidence)),
        _ensembled(whole.confidence),
        _ensembled(ensemble.effective_gap(whole.magnitude, 1 - whole.confidence)),
        counts / np.maximum(counts.sum(axis=1, keepdims=True), 1),
    )


def _ensembled(values: Floats) -> Floats:
    return ensemble.mean(ensemble.median_over_prompts(values))
