"""Reading a published schedule: for training, for export, for whoever has nothing else of ours.

In: a schedule's folder, or the run folder that holds it. Out: one table keyed by `prompt_id`.
Invariant: nothing is read before every file was checked against the manifest.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sp2dpo_ray.core.artifact import MANIFEST, Manifest, open_artifact
from sp2dpo_ray.core.files import (
    DIAGNOSTICS,
    EVAL,
    EVAL_DIAGNOSTICS,
    EVAL_SCHEDULE,
    SCHEDULE,
    TRAIN,
)
from sp2dpo_ray.errors import ArtifactError, DataError

STAGE = "schedule"
TABLES = {TRAIN: (SCHEDULE, DIAGNOSTICS), EVAL: (EVAL_SCHEDULE, EVAL_DIAGNOSTICS)}


def load_schedule(
    path: str | Path, columns: Sequence[str] | None = None, *, split: str = TRAIN
) -> pa.Table:
    """The schedule in a folder, one row a pair, sorted by `prompt_id`.

    path: a schedule's folder, or a run folder. columns: which to read besides `prompt_id`; None for
    all, those of `schedule.parquet` first, then the diagnostics (overall category, disagreement,
    further estimators). split: "train", or "eval" for the held-out pairs.
    Raises ArtifactError where files are missing, altered or of another schema version, DataError
    for a column that is not there.
    """
    folder = schedule_folder(path)
    open_schedule(folder)
    return read_columns(folder, columns, split=split)


def schedule_folder(path: str | Path) -> Path:
    """The folder of the schedule that `path` names or holds."""
    path = Path(path)
    inner = path / STAGE
    return inner if not (path / MANIFEST).exists() and inner.is_dir() else path


def open_schedule(folder: Path) -> Manifest:
    """The manifest of a schedule whose files are unaltered."""
    manifest = open_artifact(folder)
    if manifest.stage != STAGE:
        raise ArtifactError(f"{folder}: holds {manifest.stage}, not a schedule")
    return manifest


def read_columns(
    folder: Path, columns: Sequence[str] | None = None, *, split: str = TRAIN
) -> pa.Table:
    """The columns of an artifact that was opened already; see `load_schedule`."""
    if split not in TABLES:
        raise DataError(f"split must be one of {list(TABLES)}, got {split!r}")
    schedule, diagnostics = (folder / name for name in TABLES[split])
    here, beside = (
        [name for name in pq.read_schema(path).names if name != "prompt_id"]
        for path in (schedule, diagnostics)
    )
    wanted = list(columns) if columns is not None else [*here, *beside]
    unknown = [name for name in wanted if name not in (*here, *beside, "prompt_id")]
    if unknown:
        raise DataError(f"{folder}: no column {unknown}; there are {['prompt_id', *here, *beside]}")
    table = pq.read_table(schedule, columns=["prompt_id", *(n for n in wanted if n in here)])
    # both files hold the same pairs in the same order
    more = pq.read_table(diagnostics, columns=["prompt_id", *(n for n in wanted if n in beside)])
    for name in more.column_names[1:]:
        table = table.append_column(name, more[name])
    return table.select(list(dict.fromkeys(["prompt_id", *wanted])))
