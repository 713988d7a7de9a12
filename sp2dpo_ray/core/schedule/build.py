"""From annotations to the files of a schedule, a piece of the pairs at a time.

In: the annotations table, a recipe. Out: the files of `schedule/`. Invariant: a pair is in the
table or in `excluded`, never in both, never in neither; no clock and no row order enters.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq

from sp2dpo_ray.core.artifact import ROWS_AT_ONCE
from sp2dpo_ray.core.files import (
    DIAGNOSTICS,
    EVAL,
    EVAL_DIAGNOSTICS,
    EVAL_SCHEDULE,
    EXCLUDED,
    QUALITY,
    SCHEDULE,
    SCHEDULE_CSV,
    TRAIN,
)
from sp2dpo_ray.core.schedule.columns import excluded_table, tables_of, whole_pairs
from sp2dpo_ray.core.schedule.grid import Grid
from sp2dpo_ray.core.schedule.quality import kept_columns, quality
from sp2dpo_ray.core.schedule.reading import Annotations, batches_of, read_grids
from sp2dpo_ray.core.schedule.recipe import PAIRS_AT_ONCE, Fitted, Recipe


@dataclass(frozen=True, slots=True)
class Schedule:
    """The published columns, the diagnostics beside them, the pairs left out, and the figures."""

    table: pa.Table
    diagnostics: pa.Table
    excluded: pa.Table
    quality: dict[str, Any]


def build_schedule(annotations: pa.Table, recipe: Recipe) -> Schedule:
    """The schedule of the training rows of an annotations table, in memory.

    annotations: rows of ANNOTATION_SCHEMA, in any order; of repeated calls the first row counts.
    """
    read = read_grids(batches_of(annotations), recipe.panel, (TRAIN, EVAL))
    whole, fitted = _fitted(read, recipe)
    pieces = list(pieces_of(whole, fitted))
    table, diagnostics = (pa.concat_tables(part) for part in zip(*pieces, strict=True))
    figures = quality(read, read.grids[TRAIN], whole, fitted, table, diagnostics)
    excluded = excluded_table(_excluded(read.grids[TRAIN]), recipe.panel)
    return Schedule(table, diagnostics, excluded, figures)


def write_schedule(source: Path, recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Write all files of a schedule but its card; returns the figures of the training pairs."""
    read = read_grids(batches_of(source), recipe.panel, (TRAIN, EVAL))
    whole, fitted = _fitted(read, recipe)
    kept: list[pa.Table] = []
    diagnostics: list[pa.Table] = []
    first, _ = next(pieces_of(whole.take(0, 0), fitted))
    with csv.CSVWriter(folder / SCHEDULE_CSV, first.schema) as lines:

        def keep(table: pa.Table, beside: pa.Table) -> None:
            lines.write_table(table)
            kept.append(table.select(kept_columns(recipe.panel)))
            diagnostics.append(beside)

        _write(pieces_of(whole, fitted), folder / SCHEDULE, folder / DIAGNOSTICS, keep)
    held_out = read.grids[EVAL].where(whole_pairs(read.grids[EVAL]))
    _write(pieces_of(held_out, fitted), folder / EVAL_SCHEDULE, folder / EVAL_DIAGNOSTICS)
    excluded = excluded_table(_excluded(read.grids[TRAIN]), recipe.panel)
    pq.write_table(excluded, folder / EXCLUDED, compression="zstd")
    figures = quality(
        read, read.grids[TRAIN], whole, fitted,
        pa.concat_tables(kept), pa.concat_tables(diagnostics),
    )  # fmt: skip
    text = json.dumps(figures, indent=2, allow_nan=False)
    (folder / QUALITY).write_text(text + "\n", encoding="utf-8")
    return figures


def _fitted(read: Annotations, recipe: Recipe) -> tuple[Grid, Fitted]:
    grid = read.grids[TRAIN]
    whole = grid.where(whole_pairs(grid))
    return whole, recipe.fitted(whole)


def _excluded(grid: Grid) -> Grid:
    return grid.where(np.logical_not(whole_pairs(grid)))


def pieces_of(grid: Grid, fitted: Fitted) -> Iterator[tuple[pa.Table, pa.Table]]:
    """The tables of whole pairs, a piece at a time; one empty piece where there is no pair."""
    for start in range(0, max(len(grid), 1), PAIRS_AT_ONCE):
        yield tables_of(grid.take(start, min(start + PAIRS_AT_ONCE, len(grid))), fitted)


def _write(
    pieces: Iterator[tuple[pa.Table, pa.Table]],
    schedule: Path,
    diagnostics: Path,
    also: Callable[[pa.Table, pa.Table], None] = lambda table, beside: None,
) -> None:
    """Write both tables as they come; also: who else wants the pieces."""
    with contextlib.ExitStack() as stack:
        writers: list[pq.ParquetWriter] = []
        for table, beside in pieces:
            if not writers:
                writers = [
                    stack.enter_context(pq.ParquetWriter(path, part.schema, compression="zstd"))
                    for path, part in ((schedule, table), (diagnostics, beside))
                ]
            for writer, part in zip(writers, (table, beside), strict=True):
                writer.write_table(part, row_group_size=ROWS_AT_ONCE)
            also(table, beside)
