"""The three texts of each pair, by columns.

In: a table of `pairs/`, or pairs. Out: Arrow columns of one length. Invariant: a prompt of several
turns is one text, its turns two line breaks apart, from whichever of both it comes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sp2dpo_ray.core.pairs import Pair

BETWEEN_TURNS = "\n\n"


@dataclass(frozen=True, slots=True)
class Texts:
    """Three columns of the same length."""

    prompt: pa.Array
    chosen: pa.Array
    rejected: pa.Array

    def __len__(self) -> int:
        return len(self.chosen)

    def slice(self, start: int, count: int) -> Texts:
        return Texts(
            *(column.slice(start, count) for column in (self.prompt, self.chosen, self.rejected))
        )

    def take(self, rows: NDArray[Any]) -> Texts:
        return Texts(
            *(column.take(pa.array(rows)) for column in (self.prompt, self.chosen, self.rejected))
        )


def texts_of(pairs: pa.Table) -> Texts:
    """The texts of a table that `pairs/` stores; the prompt's turns in one text."""
    turns = pairs["prompt"].combine_chunks()
    joined = pc.binary_join(
        pa.ListArray.from_arrays(
            pc.subtract(turns.offsets, turns.offsets[0]), turns.flatten().field("content")
        ),
        BETWEEN_TURNS,
    )
    return Texts(joined, *(pairs[name].combine_chunks() for name in ("chosen", "rejected")))


def texts_of_pairs(pairs: list[Pair]) -> Texts:
    """Texts of values; those of a table come faster from `texts_of`."""
    return Texts(
        pa.array([BETWEEN_TURNS.join(turn["content"] for turn in pair.prompt) for pair in pairs]),
        pa.array([pair.chosen for pair in pairs], pa.string()),
        pa.array([pair.rejected for pair in pairs], pa.string()),
    )
