"""Is a published artifact what it says? Hashes, columns, ranges, and every beta computed again.

In: a folder. Out: one line for each check that passed. Invariant: the first thing that is wrong is
raised, with file, pair, column and both values; nothing after it is looked at.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
import pyarrow.parquet as pq

from sp2dpo_ray.core.artifact import MANIFEST, Manifest, manifests_in, open_artifact
from sp2dpo_ray.core.files import (
    DIAGNOSTICS,
    EVAL,
    EXCLUDED,
    QUALITY,
    SCHEDULE,
    SCHEDULE_CSV,
    TRAIN,
)
from sp2dpo_ray.core.schedule.build import pieces_of
from sp2dpo_ray.core.schedule.grid import PREDICTED_COLUMN, Grid, Panel, grid_of
from sp2dpo_ray.core.schedule.published import STAGE, TABLES
from sp2dpo_ray.core.schedule.quality import rounded
from sp2dpo_ray.core.schedule.recipe import Fitted, Recipe
from sp2dpo_ray.errors import ArtifactError

# exp, tanh and powers differ in the last bit between processors; nothing of interest is as small
TOLERANCE = 1e-12
REFERENCE = "reference"


def verify(path: Path) -> Iterator[str]:
    """Check an artifact, or every artifact below a run folder; yields a line a passed check.

    Raises ArtifactError with the first thing that is wrong.
    """
    folders = [path / name for name in manifests_in(path)]
    if not folders:
        raise ArtifactError(f"{path}: no finished artifact here (no {MANIFEST} in it or below)")
    manifests = {}
    for folder in folders:
        manifest = manifests[folder] = open_artifact(folder)
        yield f"{folder}: {manifest.stage}, {len(manifest.files)} files with the recorded SHA-256"
        if manifest.stage == STAGE:
            yield from verify_schedule(folder, manifest)
    yield from _inputs(manifests)


def _inputs(manifests: dict[Path, Manifest]) -> Iterator[str]:
    """Each artifact was made from the ones that lie beside it."""
    there: dict[str, set[str]] = {}
    for manifest in manifests.values():
        there.setdefault(manifest.stage, set()).add(manifest.digest)
    for folder, manifest in manifests.items():
        for name, digest in manifest.inputs.items():
            stage = name.partition(" ")[0]  # "train jmamp" is an input of the stage train
            if stage not in there or digest in there[stage]:
                continue
            if manifest.stage == REFERENCE:  # each has a folder of its own, whatever came later
                yield f"{folder}: of another {name} than the one that lies here; nobody reads it"
                continue
            raise ArtifactError(
                f"{folder}: was made from another {name} than the one that lies here; run: sp2dpo "
                f"{manifest.stage} CONFIG, or remove what is out of date: sp2dpo clean RUN --stale"
            )
    if len(manifests) > 1:
        yield "every artifact was made from the ones that lie here"


def verify_schedule(folder: Path, manifest: Manifest) -> Iterator[str]:
    """The checks of a schedule whose files are unaltered."""
    recipe = Recipe.from_json((manifest.settings or {}).get("recipe", {}))
    panel = recipe.panel
    fitted = recipe.fitted(_empty(panel))
    for split, names in TABLES.items():
        for name, expected in zip(names, next(pieces_of(_empty(panel), fitted)), strict=True):
            _same_columns(folder / name, expected.schema)
        ids = pq.read_table(folder / names[0], columns=["prompt_id"])["prompt_id"]
        _sorted_ids(folder / names[0], ids)
        if split == TRAIN:
            _apart(folder, ids)
    yield "  columns and their types are those of the recipe; ids are sorted and differ"

    marks = pq.read_table(folder / DIAGNOSTICS, columns=[PREDICTED_COLUMN])
    table = pq.read_table(folder / SCHEDULE)
    if marks.num_rows != table.num_rows:
        raise ArtifactError(
            f"{folder / DIAGNOSTICS}: {marks.num_rows} rows, {SCHEDULE} has {table.num_rows}"
        )
    table = table.append_column(PREDICTED_COLUMN, marks[PREDICTED_COLUMN])
    grid = grid_of(table, panel, str(folder / SCHEDULE))
    _in_range(folder / SCHEDULE, grid, panel)
    beside = folder / TABLES[EVAL][0]
    held_out = grid_of(pq.read_table(beside), panel, str(beside))
    _in_range(folder / TABLES[EVAL][0], held_out, panel)
    yield "  categories are known, magnitudes and confidences lie in [0, 1]"

    fitted = recipe.fitted(grid)
    recorded = json.loads((folder / QUALITY).read_text(encoding="utf-8"))["fit"]
    _same_fit(folder / QUALITY, recorded, fitted)
    for part, names in ((grid, TABLES[TRAIN]), (held_out, TABLES[EVAL])):
        _recompute(folder, part, names, fitted)
    yield (
        f"  all betas of {len(grid):,} training and {len(held_out):,} held-out pairs follow from "
        "their magnitudes and confidences"
    )
    _same_csv(folder)
    yield f"  {SCHEDULE_CSV} holds what {SCHEDULE} holds"


def _empty(panel: Panel) -> Grid:
    shape = (0, len(panel.teachers), len(panel.variants))
    number, code = np.zeros(shape), np.zeros(shape, np.int8)
    return Grid(pa.array([], pa.string()), code, number, number, code, code.astype(np.int16))


def _same_columns(path: Path, expected: pa.Schema) -> None:
    schema = pq.read_schema(path)
    if schema.names != expected.names:
        for place, (name, wanted) in enumerate(zip(schema.names, expected.names, strict=False)):
            if name != wanted:
                raise ArtifactError(f"{path}: column {place} is {name!r}, it must be {wanted!r}")
        raise ArtifactError(
            f"{path}: {len(schema.names)} columns, the recipe gives {len(expected.names)}"
        )
    for name in schema.names:
        if schema.field(name).type != expected.field(name).type:
            raise ArtifactError(
                f"{path}: column {name} is {schema.field(name).type}, it must be "
                f"{expected.field(name).type}"
            )


def _sorted_ids(path: Path, ids: pa.ChunkedArray) -> None:
    if ids.null_count:
        raise ArtifactError(f"{path}: {ids.null_count} rows have no prompt_id")
    values = ids.combine_chunks()
    rising = pc.less(values.slice(0, max(len(values) - 1, 0)), values.slice(1))
    wrong = np.flatnonzero(~rising.to_numpy(zero_copy_only=False))
    if len(wrong):
        row = int(wrong[0])
        raise ArtifactError(
            f"{path}: prompt_id {values[row + 1]} follows {values[row]}: ids must rise, each once"
        )


def _apart(folder: Path, ids: pa.ChunkedArray) -> None:
    excluded = pq.read_table(folder / EXCLUDED)["prompt_id"]
    both = excluded.filter(pc.is_in(excluded, ids.combine_chunks()))
    if len(both):
        raise ArtifactError(f"{folder / EXCLUDED}: pair {both[0]} is in the schedule as well")


def _in_range(path: Path, grid: Grid, panel: Panel) -> None:
    asked = grid.category >= 0
    for what, values in (("magnitude", grid.magnitude), ("confidence", grid.confidence)):
        wrong = np.where(asked, ~((values >= 0) & (values <= 1)), ~np.isnan(values))
        if wrong.any():
            row, j, k = np.argwhere(wrong)[0]
            column = f"{what}_{panel.teachers[j]}_{panel.variants[k]}"
            raise ArtifactError(
                f"{path}: pair {grid.ids[int(row)]}: {column} is {values[row, j, k]}, it must lie "
                "in [0, 1], or be empty where the category is"
            )


def _same_fit(path: Path, recorded: dict[str, Any], fitted: Fitted) -> None:
    found = rounded(fitted.json)
    for name, values in found.items():
        if recorded.get(name) != values:
            raise ArtifactError(
                f"{path}: fit.{name} is {recorded.get(name)}, but the table gives {values}"
            )


def _recompute(folder: Path, grid: Grid, names: tuple[str, str], fitted: Fitted) -> None:
    stored = [pq.read_table(folder / name) for name in names]
    start = 0
    for tables in pieces_of(grid, fitted):
        for name, whole, expected in zip(names, stored, tables, strict=True):
            part = whole.slice(start, expected.num_rows)
            for column in expected.column_names:
                if column != PREDICTED_COLUMN:  # who spoke is in the annotations alone
                    _same_values(folder / name, part, expected, column)
        start += tables[0].num_rows


def _same_values(path: Path, stored: pa.Table, expected: pa.Table, column: str) -> None:
    one, other = stored[column], expected[column]
    if one.equals(other):
        return
    if pa.types.is_floating(one.type):
        here, there = one.to_numpy(), other.to_numpy()
        wrong = ~(np.abs(here - there) <= TOLERANCE) & ~(np.isnan(here) & np.isnan(there))
    else:
        same = pc.fill_null(pc.equal(one, other), False)
        both_empty = pc.and_(pc.is_null(one), pc.is_null(other))
        wrong = ~pc.or_(same, both_empty).to_numpy()
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise ArtifactError(
            f"{path}: pair {stored['prompt_id'][row]}: {column} is {one[row].as_py()!r}, but its "
            f"annotations give {other[row].as_py()!r}"
        )


def _same_csv(folder: Path) -> None:
    path = folder / SCHEDULE_CSV
    table = pq.read_table(folder / SCHEDULE)
    options = csv.ConvertOptions(
        column_types=table.schema, strings_can_be_null=True, quoted_strings_can_be_null=False
    )
    start = 0
    with csv.open_csv(path, convert_options=options) as lines:
        if lines.schema.names != table.schema.names:
            raise ArtifactError(f"{path}: its columns are not those of {SCHEDULE}")
        for batch in lines:
            part = table.slice(start, batch.num_rows)
            for column in table.column_names:
                _same_values(path, pa.Table.from_batches([batch]), part, column)
            start += batch.num_rows
    if start != table.num_rows:
        raise ArtifactError(f"{path}: {start} rows, {SCHEDULE} has {table.num_rows}")
