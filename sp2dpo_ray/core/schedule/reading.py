"""Reading the annotations table into a grid.

In: batches of the table, in any order. Out: a `Grid` for each split. Invariant: of repeated calls
the first recorded one counts, and the others are counted; text never stays in memory, so a pair
costs its id and about twenty bytes a call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sp2dpo_ray.core.annotation import Outcome
from sp2dpo_ray.core.schedule.ensemble import Floats
from sp2dpo_ray.core.schedule.grid import OUTCOMES, Grid, Panel
from sp2dpo_ray.core.taxonomy import CATEGORIES, Codes
from sp2dpo_ray.errors import ArtifactError

ANNOTATION_SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("split", pa.string()),
        ("teacher", pa.string()),
        ("variant", pa.string()),
        ("key", pa.string()),
        ("outcome", pa.string()),
        ("detail", pa.string()),
        ("category", pa.string()),
        ("magnitude", pa.float64()),
        ("confidence", pa.float64()),
        ("text", pa.string()),
        ("served_model", pa.string()),
        ("prompt_tokens", pa.int64()),
        ("completion_tokens", pa.int64()),
    ]
)
NAMES = ("prompt_id", "split", "teacher", "variant", "outcome", "category", "served_model")
NUMBERS = ("magnitude", "confidence")
NOT_ATTEMPTED = OUTCOMES.index(Outcome.NOT_ATTEMPTED)
UNKNOWN_CATEGORY = -2  # there is a name, and it is none of the six
ROWS_AT_ONCE = 1 << 16

Batches = Callable[[], Iterator[pa.RecordBatch]]


@dataclass(frozen=True, slots=True)
class Annotations:
    """The grid of each split, and how many calls were recorded twice.

    repeated: calls with more than one row; conflicting: those whose rows differ.
    """

    grids: dict[str, Grid]
    repeated: int
    conflicting: int


def batches_of(source: Path | pa.Table) -> Batches:
    """The columns that a grid is made of, a piece at a time; from a file or a table."""
    columns = [*NAMES, *NUMBERS]
    if isinstance(source, pa.Table):
        narrow = source.select(columns)
        return lambda: iter(narrow.to_batches(max_chunksize=ROWS_AT_ONCE))
    missing = set(columns) - set(pq.read_schema(source).names)
    if missing:
        raise ArtifactError(f"{source}: the columns {sorted(missing)} are missing")

    def read() -> Iterator[pa.RecordBatch]:
        with pq.ParquetFile(source, read_dictionary=list(NAMES)) as file:
            for group in range(file.num_row_groups):
                yield from file.read_row_group(group, columns=columns).combine_chunks().to_batches()

    return read


def read_grids(batches: Batches, panel: Panel, splits: Sequence[str]) -> Annotations:
    """The grids of the splits, from batches that can be read twice.

    Raises ArtifactError for a teacher, variant, split or outcome that the panel does not have.
    """
    places, ids_by_split = _places(batches, splits)
    offsets = np.cumsum([0, *(len(ids) for ids in ids_by_split)])
    shape = (int(offsets[-1]), len(panel.teachers), len(panel.variants))
    whole = Grid(
        pa.concat_arrays(ids_by_split),
        np.full(shape, -1, np.int8),
        np.full(shape, np.nan),
        np.full(shape, np.nan),
        np.full(shape, NOT_ATTEMPTED, np.int8),
        np.full(shape, -1, np.int16),
    )
    served: dict[str, int] = {}
    repeats = _Repeats(np.zeros(shape, bool).reshape(-1))
    for batch, place in zip(batches(), places, strict=True):
        _spread(whole, batch, place, panel, served, repeats)
    grids = {}
    for split, start, stop in zip(splits, offsets, offsets[1:], strict=False):
        part = whole.take(int(start), int(stop))
        grids[split] = Grid(
            part.ids, part.category, part.magnitude, part.confidence, part.outcome, part.served,
            tuple(served),
        )  # fmt: skip
    return Annotations(grids, repeats.repeated, repeats.conflicting)


def _places(
    batches: Batches, splits: Sequence[str]
) -> tuple[list[NDArray[np.int32]], list[pa.Array]]:
    """For each batch the pair's row of each of its calls, and the sorted ids of each split."""
    found: list[pa.Array] = []
    rows: list[NDArray[np.int32]] = []
    split_codes: list[NDArray[np.int64]] = []
    total = 0
    for batch in batches():
        name = _encoded(batch.column("prompt_id"))
        split = _codes(batch.column("split"), splits, "split")
        # one entry for each pair of the batch, whichever its split
        entry, inverse = np.unique(
            name.indices.to_numpy() * len(splits) + split, return_inverse=True
        )
        found.append(name.dictionary.take(pa.array(entry // len(splits))).cast(pa.string()))
        split_codes.append(entry % len(splits))
        rows.append((inverse + total).astype(np.int32))
        total += len(entry)
    ids = pa.chunked_array(found, pa.string()).combine_chunks().dictionary_encode()
    order = pc.sort_indices(ids.dictionary).to_numpy()
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    split_of = np.concatenate(split_codes) if split_codes else np.zeros(0, np.int64)
    keys, place = np.unique(
        split_of * max(len(order), 1) + rank[ids.indices.to_numpy()], return_inverse=True
    )
    ordered = ids.dictionary.take(pa.array(order))
    split_of_key, rank_of_key = np.divmod(keys, max(len(order), 1))
    ids_by_split = [
        ordered.take(pa.array(rank_of_key[split_of_key == code])) for code in range(len(splits))
    ]
    narrow = place.astype(np.int32)
    return [narrow[row] for row in rows], ids_by_split


@dataclass(slots=True)
class _Repeats:
    """Cells that are filled, and what came for them again."""

    filled: NDArray[np.bool_]
    repeated: int = 0
    conflicting: int = 0


def _spread(
    grid: Grid,
    batch: pa.RecordBatch,
    place: NDArray[np.int32],
    panel: Panel,
    served: dict[str, int],
    repeats: _Repeats,
) -> None:
    """Put a batch's calls into their cells."""
    shape = grid.category.shape
    teacher = _codes(batch.column("teacher"), panel.teachers, "teacher")
    variant = _codes(batch.column("variant"), panel.variants, "variant")
    cell = (place.astype(np.int64) * shape[1] + teacher) * shape[2] + variant
    columns: list[tuple[NDArray[Any], NDArray[Any]]] = [
        (grid.category, _categories(batch.column("category"))),
        (grid.magnitude, _floats(batch.column("magnitude"))),
        (grid.confidence, _floats(batch.column("confidence"))),
        (grid.outcome, _codes(batch.column("outcome"), OUTCOMES, "outcome").astype(np.int8)),
    ]
    served_codes = _served(batch.column("served_model"), served)
    fresh = ~repeats.filled[cell]
    if not (fresh.all() and (np.diff(cell) > 0).all()):
        # np.unique names the first row of each cell
        first = np.zeros(len(cell), bool)
        first[np.unique(cell, return_index=True)[1]] = True
        fresh &= first
    for values, new in (*columns, (grid.served, served_codes)):
        values.reshape(-1)[cell[fresh]] = new[fresh]
    repeats.filled[cell] = True
    if fresh.all():
        return
    again = cell[~fresh]
    differs = np.zeros(len(again), bool)
    for values, new in columns:
        old, late = values.reshape(-1)[again], new[~fresh]
        differs |= (old != late) & ~((old != old) & (late != late))  # NaN equals NaN here
    repeats.repeated += len(again)
    repeats.conflicting += int(differs.sum())


def _encoded(column: pa.Array) -> pa.DictionaryArray:
    return column if pa.types.is_dictionary(column.type) else column.dictionary_encode()


def _codes(column: pa.Array, names: Sequence[str], what: str) -> NDArray[np.int64]:
    """The place of each value in `names`; ArtifactError for one that is not there."""
    encoded = _encoded(column)
    known = {str(name): code for code, name in enumerate(names)}
    indices = encoded.indices.fill_null(-1).to_numpy()
    values = [*encoded.dictionary.to_pylist(), None]  # index -1: null
    table = np.array([known.get(value, -1) for value in values], np.int64)
    codes = table[indices]
    if (codes < 0).any():
        unknown = sorted({str(values[index]) for index in np.unique(indices[codes < 0])})
        raise ArtifactError(
            f"annotations: {what} {unknown} is not one of {[str(name) for name in names]}; "
            "annotations and schedule belong to different configurations"
        )
    return np.asarray(codes)


def _categories(column: pa.Array) -> Codes:
    encoded = _encoded(column)
    known = {str(name): code for code, name in enumerate(CATEGORIES)}
    values = encoded.dictionary.to_pylist()
    table = np.array([*(known.get(value, UNKNOWN_CATEGORY) for value in values), -1], np.int8)
    return np.asarray(table[encoded.indices.fill_null(-1).to_numpy()])


def _served(column: pa.Array, served: dict[str, int]) -> NDArray[np.int16]:
    encoded = _encoded(column)
    values = encoded.dictionary.to_pylist()
    codes = [served.setdefault(value, len(served)) for value in values if value is not None]
    table = np.array([*codes, -1], np.int16)
    return np.asarray(table[encoded.indices.fill_null(-1).to_numpy()])


def _floats(column: pa.Array) -> Floats:
    return np.asarray(column.to_numpy(zero_copy_only=False), np.float64)
