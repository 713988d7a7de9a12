"""The calls of pairs as arrays: one cell a call, pairs sorted by their id.

In: the arrays. Out: views of them. Invariant: row i of every array belongs to `ids[i]`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sp2dpo_ray.core.annotation import Outcome
from sp2dpo_ray.core.schedule.ensemble import Floats
from sp2dpo_ray.core.taxonomy import CATEGORIES, Codes
from sp2dpo_ray.errors import ArtifactError

OUTCOMES = tuple(Outcome)
PREDICTED_COLUMN = "predicted"


@dataclass(frozen=True, slots=True)
class Panel:
    """The teachers and prompt variants, in the order of their columns."""

    teachers: tuple[str, ...]
    variants: tuple[str, ...]

    @property
    def calls(self) -> list[tuple[int, int, str, str]]:
        """Each call's place and names, in the order of the columns."""
        return [
            (j, k, teacher, variant)
            for j, teacher in enumerate(self.teachers)
            for k, variant in enumerate(self.variants)
        ]


@dataclass(frozen=True, slots=True)
class Grid:
    """The calls of N pairs; arrays are (N, J, K).

    category: code, -1 where there is none, -2 for an unknown name. outcome: place in `OUTCOMES`.
    served: place in `served_names`, -1 where nobody told.
    """

    ids: pa.Array
    category: Codes
    magnitude: Floats
    confidence: Floats
    outcome: NDArray[np.int8]
    served: NDArray[np.int16]
    served_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, start: int, stop: int) -> Grid:
        """The pairs of a stretch, without a copy."""
        part = slice(start, stop)
        return Grid(
            self.ids.slice(start, stop - start), self.category[part], self.magnitude[part],
            self.confidence[part], self.outcome[part], self.served[part], self.served_names,
        )  # fmt: skip

    def where(self, keep: NDArray[np.bool_]) -> Grid:
        """The pairs that are marked; the grid itself if all are."""
        if keep.all():
            return self
        return Grid(
            self.ids.filter(pa.array(keep)), self.category[keep], self.magnitude[keep],
            self.confidence[keep], self.outcome[keep], self.served[keep], self.served_names,
        )  # fmt: skip


def predicted(grid: Grid) -> NDArray[np.bool_]:
    """Whether each pair was told by a predictor in the teachers' place; (N,)."""
    return np.asarray((grid.outcome == OUTCOMES.index(Outcome.PREDICTED)).any(axis=(1, 2)))


def grid_of(table: pa.Table, panel: Panel, where: str) -> Grid:
    """The calls as a schedule's own columns hold them; where: what errors call the table. Pairs
    are marked as predicted where the diagnostics' column of that name stands beside."""
    shape = (table.num_rows, len(panel.teachers), len(panel.variants))
    category = np.full(shape, -1, np.int8)
    magnitude, confidence = np.full(shape, np.nan), np.full(shape, np.nan)
    names = pa.array([str(name) for name in CATEGORIES])
    for j, k, teacher, variant in panel.calls:
        tail = f"{teacher}_{variant}"
        stored = table[f"category_{tail}"]
        codes = pc.index_in(stored, names)
        unknown = pc.and_(pc.is_null(codes), pc.is_valid(stored))
        if pc.any(unknown).as_py():
            row = table.filter(unknown).slice(0, 1)
            raise ArtifactError(
                f"{where}: pair {row['prompt_id'][0]}: category_{tail} is "
                f"{row[f'category_{tail}'][0].as_py()!r}, none of the six"
            )
        category[:, j, k] = pc.fill_null(codes, -1).to_numpy()
        magnitude[:, j, k] = table[f"magnitude_{tail}"].to_numpy()
        confidence[:, j, k] = table[f"confidence_{tail}"].to_numpy()
    ok, skipped = (OUTCOMES.index(name) for name in (Outcome.OK, Outcome.SKIPPED))
    outcome = np.where(category >= 0, ok, skipped).astype(np.int8)
    if PREDICTED_COLUMN in table.column_names:
        told = table[PREDICTED_COLUMN].to_numpy()
        outcome[told] = OUTCOMES.index(Outcome.PREDICTED)
    ids = table["prompt_id"].combine_chunks()
    return Grid(ids, category, magnitude, confidence, outcome, np.full(shape, -1, np.int16))
