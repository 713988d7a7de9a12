"""The columns of a schedule (paper section E.3, groups A to E) and the diagnostics beside them.

In: whole pairs of a `Grid`, a fitted recipe. Out: two tables with one row a pair, in the grid's
order. Invariant: betas come from stored magnitude and confidence alone (Eqs. 15 to 18), and a row
depends on its own calls, its id and the fitted recipe, so pairs may be done in pieces.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sp2dpo_ray.core.annotation import Outcome
from sp2dpo_ray.core.hashing import uniform_draws
from sp2dpo_ray.core.schedule import ensemble
from sp2dpo_ray.core.schedule.ensemble import Floats
from sp2dpo_ray.core.schedule.estimators import Signals, estimate
from sp2dpo_ray.core.schedule.grid import OUTCOMES, PREDICTED_COLUMN, Grid, Panel, predicted
from sp2dpo_ray.core.schedule.recipe import Fitted
from sp2dpo_ray.core.taxonomy import CATEGORIES, Codes, majority_vote

RANDOM_SEED = 42
ENSEMBLE = "ens"
DEFAULT_BETA = f"beta_annotators_mean_{ENSEMBLE}"  # Eq. 18
EXCLUDED_SCHEMA = pa.schema([("prompt_id", pa.string()), ("reason", pa.string())])

GIVEN = (Outcome.OK, Outcome.PREDICTED)  # calls that have an annotation

# why a call that was answered is no annotation
UNKNOWN, NOT_A_NUMBER, OUT_OF_RANGE = "unknown_category", "not_a_number", "number_out_of_range"


def reserved_columns(panel: Panel) -> set[str]:
    """Columns of betas that are the paper's, so that no estimator may have their name."""
    return {
        "beta_random",
        *(f"beta_{t}_{v}" for t in panel.teachers for v in (*panel.variants, ENSEMBLE)),
        *(f"beta_annotators_mean_{v}" for v in (*panel.variants, ENSEMBLE)),
    }


def whole_pairs(grid: Grid) -> NDArray[np.bool_]:
    """Whether each pair has every annotation that was asked for, one a teacher at least; (N,)."""
    some = np.asarray(_valid(grid).any(axis=2))
    return np.asarray(settled(grid).all(axis=(1, 2)) & some.all(axis=1))


def settled(grid: Grid) -> NDArray[np.bool_]:
    """Whether each call is an annotation, or was left out on purpose; (N, J, K)."""
    # a call that economy mode skipped is missing by intention: its columns are empty
    return np.asarray(_valid(grid) | (grid.outcome == OUTCOMES.index(Outcome.SKIPPED)))


def _valid(grid: Grid) -> NDArray[np.bool_]:
    magnitude, confidence = grid.magnitude, grid.confidence
    # comparisons with NaN are false, so a missing number is invalid too
    in_range = (magnitude >= 0) & (magnitude <= 1) & (confidence >= 0) & (confidence <= 1)
    answered = np.isin(grid.outcome, [OUTCOMES.index(name) for name in GIVEN])
    return np.asarray((grid.category >= 0) & in_range & answered)


def faults(grid: Grid) -> NDArray[np.object_]:
    """Why each call is no annotation; '' where it is one, or was skipped on purpose; (N, J, K)."""
    names = np.array([str(outcome) for outcome in OUTCOMES], dtype=object)[grid.outcome]
    fault = np.where(np.isin(names, [str(name) for name in (*GIVEN, Outcome.SKIPPED)]), "", names)
    wrong = np.isin(names, [str(name) for name in GIVEN]) & ~_valid(grid)
    nan = np.isnan(grid.magnitude) | np.isnan(grid.confidence)
    fault[wrong] = OUT_OF_RANGE
    fault[wrong & nan] = NOT_A_NUMBER
    fault[wrong & (grid.category < 0)] = UNKNOWN
    return np.asarray(fault)


def excluded_table(grid: Grid, panel: Panel) -> pa.Table:
    """The pairs of a grid of incomplete ones, each with every call that is no annotation."""
    fault = faults(grid)
    rows = []
    for name, cells in zip(grid.ids.to_pylist(), fault, strict=True):
        reasons = [f"{t}/{v}: {cells[j, k]}" for j, k, t, v in panel.calls if cells[j, k]]
        # every call of a teacher skipped: nothing is wrong with any, but nothing is there
        rows.append({"prompt_id": name, "reason": "; ".join(reasons) or "no answer of a teacher"})
    return pa.Table.from_pylist(rows, schema=EXCLUDED_SCHEMA)


def tables_of(grid: Grid, fitted: Fitted) -> tuple[pa.Table, pa.Table]:
    """The schedule's and the diagnostics' rows of whole pairs."""
    recipe = fitted.recipe
    panel, beta_of = recipe.panel, recipe.mapping
    signals = Signals(
        ensemble.effective_gap(grid.magnitude, grid.confidence), grid.category, grid.confidence
    )
    gap, num_pairs = signals.gap, len(grid)
    beta = beta_of(gap, grid.category, grid.confidence)
    gap_ens = ensemble.median_over_prompts(gap)
    votes = np.empty((num_pairs, len(panel.teachers)), np.int8)
    ties = np.empty(votes.shape, bool)
    for j in range(len(panel.teachers)):
        votes[:, j], ties[:, j] = majority_vote(grid.category[:, j])
    confidence_ens = ensemble.median_over_prompts(grid.confidence)
    beta_ens = beta_of(gap_ens, votes, confidence_ens)

    columns: dict[str, object] = {
        "prompt_id": grid.ids,
        "prompt_variant_count": np.full(num_pairs, len(panel.variants), dtype=np.int64),
    }
    for j, k, teacher, variant in panel.calls:
        tail = f"{teacher}_{variant}"
        columns[f"category_{tail}"] = _names(grid.category[:, j, k])
        columns[f"magnitude_{tail}"] = _numbers(grid.magnitude[:, j, k])
        columns[f"confidence_{tail}"] = _numbers(grid.confidence[:, j, k])
        columns[f"effective_gap_{tail}"] = _numbers(gap[:, j, k])
        columns[f"beta_{tail}"] = _numbers(beta[:, j, k])
    for j, teacher in enumerate(panel.teachers):
        columns[f"category_{teacher}_{ENSEMBLE}"] = _names(votes[:, j])
        columns[f"category_{teacher}_{ENSEMBLE}_tie_break"] = ties[:, j]
        columns[f"effective_gap_{teacher}_{ENSEMBLE}"] = _numbers(gap_ens[:, j])
        columns[f"beta_{teacher}_{ENSEMBLE}"] = _numbers(beta_ens[:, j])
    for k, variant in enumerate(panel.variants):
        means = ensemble.mean_over_teachers(beta[:, :, k])
        columns[f"beta_annotators_mean_{variant}"] = _numbers(means)
    columns[DEFAULT_BETA] = ensemble.mean_over_teachers(beta_ens)
    low, high = beta_of.envelope
    draws = uniform_draws(grid.ids.to_pylist(), seed=RANDOM_SEED, purpose="beta_random")
    columns["beta_random"] = low + (high - low) * draws

    overall, tie = majority_vote(votes)
    disagreement = ensemble.prompt_disagreement(gap)
    diagnostics: dict[str, object] = {
        "prompt_id": grid.ids,
        "category": _names(overall),
        "category_tie_break": tie,
        PREDICTED_COLUMN: predicted(grid),
        **{
            f"prompt_disagreement_{teacher}": disagreement[:, j]
            for j, teacher in enumerate(panel.teachers)
        },
        "teacher_std": ensemble.teacher_std(beta_ens),
        "teacher_mad": ensemble.teacher_mad(beta_ens),
        **{row.column: estimate(row, signals, fitted.fit, beta_of) for row in recipe.estimators},
    }
    return pa.table(columns), pa.table(diagnostics)


def _numbers(values: Floats) -> pa.Array:
    """A column of numbers, empty where there is none."""
    return pa.array(values, pa.float64(), from_pandas=True)


def _names(codes: Codes) -> pa.Array:
    """A column of category names, empty where nobody was asked."""
    indices = pa.array(codes.astype(np.int64), mask=(codes < 0))
    return pa.array([str(category) for category in CATEGORIES]).take(indices)
