"""The calls of pairs as arrays: one cell a call, pairs sorted by their id.

In: the arrays. Out: views of them. Invariant: row i of every array belongs to `ids[i]`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sp2dpo_ray.core.annotation import Outcome
from sp2dpo_ray.core.schedule.ensemble import Floats
from sp2dpo_ray.core.taxonomy import Codes

OUTCOMES = tuple(Outcome)


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
