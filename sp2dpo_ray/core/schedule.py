"""The schedule: from the annotations table to one beta a pair, every step a column.

In: the annotations of one split, the panel, the map. Out: `Schedule`, tables keyed by `prompt_id`
and sorted by it. Invariant: betas come from stored magnitude and confidence alone (Eqs. 15 to 18),
and a pair is in the table or in `excluded`, never in both, never in neither.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sp2dpo_ray.core import ensemble
from sp2dpo_ray.core.annotation import Outcome
from sp2dpo_ray.core.ensemble import Floats
from sp2dpo_ray.core.hashing import uniform_draws
from sp2dpo_ray.core.taxonomy import CATEGORIES, majority_vote
from sp2dpo_ray.errors import ArtifactError

RANDOM_SEED = 42
ENSEMBLE = "ens"

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


@dataclass(frozen=True, slots=True)
class Panel:
    """The teachers and prompt variants, in the order of their columns."""

    teachers: tuple[str, ...]
    variants: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Schedule:
    """The published columns, the diagnostics beside them, and the pairs left out."""

    table: pa.Table
    diagnostics: pa.Table
    excluded: pa.Table


@dataclass(frozen=True, slots=True)
class _Grid:
    """Annotations as arrays: category codes (-1 where there is none), magnitude, confidence."""

    ids: list[str]
    category_NJK: NDArray[np.int64]
    magnitude_NJK: Floats
    confidence_NJK: Floats
    outcome_NJK: NDArray[np.object_]


def build_schedule(
    annotations: pa.Table, panel: Panel, beta_of: Callable[[Floats], Floats]
) -> Schedule:
    """Ensemble the annotations into the schedule's columns (paper section E.3, groups A to E).

    annotations: rows of ANNOTATION_SCHEMA, in any order; of repeated calls the first row counts.
    beta_of: the map f_beta, from gaps to betas, elementwise.
    """
    grid = _dense(annotations, panel)
    magnitude, confidence = grid.magnitude_NJK, grid.confidence_NJK
    # comparisons with NaN are false, so a missing number is invalid too
    in_range = (magnitude >= 0) & (magnitude <= 1) & (confidence >= 0) & (confidence <= 1)
    valid = (grid.category_NJK >= 0) & in_range
    # a call that economy mode skipped is missing by intention: its columns are empty
    skipped = np.asarray(grid.outcome_NJK == str(Outcome.SKIPPED), dtype=bool)
    answered = np.asarray(valid.any(axis=2)).all(axis=1)
    expected = np.asarray(valid | skipped)
    complete = np.asarray(expected.all(axis=(1, 2)) & answered)
    whole = _Grid(
        [name for name, keep in zip(grid.ids, complete, strict=True) if keep],
        grid.category_NJK[complete],
        magnitude[complete],
        confidence[complete],
        grid.outcome_NJK[complete],
    )
    table, diagnostics = _columns(whole, panel, beta_of)
    return Schedule(table, diagnostics, _excluded(grid, panel, expected, complete))


def _dense(annotations: pa.Table, panel: Panel) -> _Grid:
    ids = sorted(set(annotations["prompt_id"].to_pylist()))
    place = (
        _codes(annotations["prompt_id"], ids, "prompt_id"),
        _codes(annotations["teacher"], panel.teachers, "teacher"),
        _codes(annotations["variant"], panel.variants, "variant"),
    )
    shape = (len(ids), len(panel.teachers), len(panel.variants))
    # np.unique names the first row of each call, whatever was recorded after it
    cell, row = np.unique(np.ravel_multi_index(place, shape), return_index=True)

    def spread(values: NDArray[Any], fill: object, kind: type) -> NDArray[Any]:
        cube: NDArray[Any] = np.full(shape, fill, dtype=kind)
        cube.reshape(-1)[cell] = values[row]
        return cube

    names = pa.array([str(category) for category in CATEGORIES])
    codes = pc.fill_null(pc.index_in(annotations["category"], names), -1)
    return _Grid(
        ids,
        spread(codes.to_numpy(), -1, np.int64),
        spread(annotations["magnitude"].to_numpy(), np.nan, np.float64),
        spread(annotations["confidence"].to_numpy(), np.nan, np.float64),
        spread(annotations["outcome"].to_numpy(), "not_attempted", np.object_),
    )


def _codes(column: pa.ChunkedArray, names: tuple[str, ...] | list[str], what: str) -> NDArray[Any]:
    codes = pc.index_in(column, pa.array(names, pa.string()))
    if codes.null_count:
        unknown = sorted(set(column.filter(pc.is_null(codes)).to_pylist()))
        raise ArtifactError(
            f"annotations: {what} {unknown} is not in the panel {list(names)}; "
            "annotations and schedule belong to different configurations"
        )
    return np.asarray(codes.to_numpy())


def _columns(
    grid: _Grid, panel: Panel, beta_of: Callable[[Floats], Floats]
) -> tuple[pa.Table, pa.Table]:
    num_pairs = len(grid.ids)
    gap = ensemble.effective_gap(grid.magnitude_NJK, grid.confidence_NJK)
    beta = beta_of(gap)
    gap_ens = ensemble.median_over_prompts(gap)
    beta_ens = beta_of(gap_ens)
    names = np.array([*map(str, CATEGORIES), None], dtype=object)  # code -1: not asked
    ids = pa.array(grid.ids, pa.string())
    columns: dict[str, object] = {
        "prompt_id": ids,
        "prompt_variant_count": np.full(num_pairs, len(panel.variants), dtype=np.int64),
    }
    for j, teacher in enumerate(panel.teachers):
        for k, variant in enumerate(panel.variants):
            tail = f"{teacher}_{variant}"
            columns[f"category_{tail}"] = _text(names[grid.category_NJK[:, j, k]])
            columns[f"magnitude_{tail}"] = _numbers(grid.magnitude_NJK[:, j, k])
            columns[f"confidence_{tail}"] = _numbers(grid.confidence_NJK[:, j, k])
            columns[f"effective_gap_{tail}"] = _numbers(gap[:, j, k])
            columns[f"beta_{tail}"] = _numbers(beta[:, j, k])
    votes = np.empty((num_pairs, len(panel.teachers)), dtype=np.int64)
    for j, teacher in enumerate(panel.teachers):
        votes[:, j], tie = majority_vote(grid.category_NJK[:, j, :])
        columns[f"category_{teacher}_{ENSEMBLE}"] = _text(names[votes[:, j]])
        columns[f"category_{teacher}_{ENSEMBLE}_tie_break"] = tie
        columns[f"effective_gap_{teacher}_{ENSEMBLE}"] = gap_ens[:, j]
        columns[f"beta_{teacher}_{ENSEMBLE}"] = beta_ens[:, j]
    for k, variant in enumerate(panel.variants):
        means = ensemble.mean_over_teachers(beta[:, :, k])
        columns[f"beta_annotators_mean_{variant}"] = _numbers(means)
    columns[f"beta_annotators_mean_{ENSEMBLE}"] = ensemble.mean_over_teachers(beta_ens)
    low, high = beta_of(np.array([0.0, 1.0]))
    draws = uniform_draws(grid.ids, seed=RANDOM_SEED, purpose="beta_random")
    columns["beta_random"] = low + (high - low) * draws

    overall, tie = majority_vote(votes)
    disagreement = ensemble.prompt_disagreement(gap)
    diagnostics: dict[str, object] = {
        "prompt_id": ids,
        "category": _text(names[overall]),
        "category_tie_break": tie,
        **{
            f"prompt_disagreement_{teacher}": disagreement[:, j]
            for j, teacher in enumerate(panel.teachers)
        },
        "teacher_std": ensemble.teacher_std(beta_ens),
        "teacher_mad": ensemble.teacher_mad(beta_ens),
    }
    return pa.table(columns), pa.table(diagnostics)


def _numbers(values: Floats) -> pa.Array:
    """A column of numbers, empty where there is none."""
    return pa.array(values, pa.float64(), from_pandas=True)


def _text(values: NDArray[np.object_]) -> pa.Array:
    return pa.array(values, pa.string())


def _excluded(
    grid: _Grid, panel: Panel, valid: NDArray[np.bool_], complete: NDArray[np.bool_]
) -> pa.Table:
    rows = []
    for index in np.flatnonzero(~complete):
        faults = []
        for j, k in np.argwhere(~valid[index]):
            outcome = grid.outcome_NJK[index, j, k]
            fault = "number_out_of_range" if outcome == "ok" else outcome
            faults.append(f"{panel.teachers[j]}/{panel.variants[k]}: {fault}")
        rows.append({"prompt_id": grid.ids[index], "reason": "; ".join(faults)})
    schema = pa.schema([("prompt_id", pa.string()), ("reason", pa.string())])
    return pa.Table.from_pylist(rows, schema=schema)
