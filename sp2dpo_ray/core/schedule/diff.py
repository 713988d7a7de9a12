"""Two schedules pair by pair: what was asked differently, and what came of it.

In: two artifacts. Out: figures for a person or a script. Invariant: pairs are matched by id, so
neither row order nor pairs that only one of them has enter a comparison of values.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sp2dpo_ray.core.schedule.agreement import spearman
from sp2dpo_ray.core.schedule.columns import DEFAULT_BETA
from sp2dpo_ray.core.schedule.published import open_schedule, read_columns, schedule_folder
from sp2dpo_ray.errors import ArtifactError

Json = dict[str, Any]
SHOWN = 10


def diff(one: Path, other: Path) -> Json:
    """Compare the training pairs of two schedules, `one` being the earlier.

    Returns pairs (counts), settings (dotted key: both values), columns (of each that differs: rows
    changed, mean and largest move), beta (of the default), largest (the pairs that moved most).
    Raises ArtifactError where they have no pair in common.
    """
    folders = [schedule_folder(path) for path in (one, other)]
    manifests = [open_schedule(folder) for folder in folders]
    ids = [read_columns(folder, ["prompt_id"])["prompt_id"].combine_chunks() for folder in folders]
    places = pc.index_in(ids[0], ids[1])
    shared = pc.is_valid(places)
    rows = (np.flatnonzero(shared.to_numpy(zero_copy_only=False)), places.drop_null().to_numpy())
    if not len(rows[0]):
        raise ArtifactError(f"{one} and {other} have no pair in common")

    def column(name: str) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
        first, second = (
            read_columns(folder, [name])[name].take(pa.array(place))
            for folder, place in zip(folders, rows, strict=True)
        )
        return first, second

    names = [read_columns(folder, None).column_names for folder in folders]
    common = [name for name in names[0] if name in names[1] and name != "prompt_id"]
    columns = {name: figures for name in common if (figures := _moves(*column(name)))["changed"]}
    beta = [values.to_numpy() for values in column(DEFAULT_BETA)]
    shared_ids = ids[0].take(pa.array(rows[0]))
    order = np.argsort(-np.abs(beta[1] - beta[0]), kind="stable")[:SHOWN]
    return {
        "pairs": {
            "both": len(rows[0]),
            "only_first": len(ids[0]) - len(rows[0]),
            "only_second": len(ids[1]) - len(rows[0]),
        },
        "same_files": manifests[0].digest == manifests[1].digest,
        "settings": _settings(manifests[0].settings, manifests[1].settings),
        "columns_only_first": [name for name in names[0] if name not in names[1]],
        "columns_only_second": [name for name in names[1] if name not in names[0]],
        "columns": columns,
        "beta": {
            "mean_first": float(beta[0].mean()),
            "mean_second": float(beta[1].mean()),
            **_moves(pa.chunked_array([beta[0]]), pa.chunked_array([beta[1]])),
            "spearman": _or_none(spearman(beta[0], beta[1])),
        },
        "largest": [
            {
                "prompt_id": shared_ids[int(row)].as_py(),
                "first": float(beta[0][row]),
                "second": float(beta[1][row]),
            }
            for row in order
            if beta[0][row] != beta[1][row]
        ],
    }


def _moves(one: pa.ChunkedArray, other: pa.ChunkedArray) -> Json:
    if one.type != other.type or not pa.types.is_floating(one.type):
        same = pc.fill_null(pc.equal(one, other), False)
        empty = pc.and_(pc.is_null(one), pc.is_null(other))
        return {"changed": len(one) - int(pc.sum(pc.or_(same, empty)).as_py() or 0)}
    here, there = one.to_numpy(), other.to_numpy()
    changed = (here != there) & ~(np.isnan(here) & np.isnan(there))
    moved = np.abs(there - here)
    known = moved[~np.isnan(moved)]
    return {
        "changed": int(changed.sum()),
        "mean_move": float(known.mean()) if len(known) else None,
        "largest_move": float(known.max()) if len(known) else None,
    }


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else value


def _settings(one: Any, other: Any, key: str = "") -> dict[str, list[Any]]:
    """The values that differ, by dotted key."""
    if isinstance(one, dict) and isinstance(other, dict):
        found: dict[str, list[Any]] = {}
        for name in [*one, *(name for name in other if name not in one)]:
            inner = f"{key}.{name}" if key else name
            found |= _settings(one.get(name), other.get(name), inner)
        return found
    return {} if one == other else {key: [one, other]}
