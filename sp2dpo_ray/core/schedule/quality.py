"""What a schedule is worth, in figures: coverage, agreement, drift, spread, sensitivity.

In: the grid of the training pairs and their columns. Out: the content of `diagnostics.json`.
Invariant: figures are rounded to nine digits, so that they are the same on every machine.
"""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa

from sp2dpo_ray.core.schedule import ensemble
from sp2dpo_ray.core.schedule.agreement import (
    alpha_of_category,
    nominal_alpha,
    rank_product,
    standard_ranks,
    votes_by_category,
)
from sp2dpo_ray.core.schedule.columns import (
    DEFAULT_BETA,
    ENSEMBLE,
    faults,
    settled,
    whole_pairs,
)
from sp2dpo_ray.core.schedule.ensemble import Floats
from sp2dpo_ray.core.schedule.grid import OUTCOMES, PREDICTED_COLUMN, Grid, Panel, predicted
from sp2dpo_ray.core.schedule.reading import Annotations
from sp2dpo_ray.core.schedule.recipe import Fitted
from sp2dpo_ray.core.taxonomy import CATEGORIES

Json = dict[str, Any]
DIGITS = 9
MOVED = 0.01  # a beta that moved by more than this is worth a word
QUARTERS = ("least disputed quarter", "second", "third", "most disputed quarter")


def kept_columns(panel: Panel) -> list[str]:
    """The columns of the schedule that the figures need."""
    return [
        *(f"{what}_{name}_{ENSEMBLE}{end}" for name in panel.teachers
          for what, end in (("effective_gap", ""), ("category", "_tie_break"))),
        DEFAULT_BETA,
    ]  # fmt: skip


def quality(
    annotations: Annotations,
    everything: Grid,
    whole: Grid,
    fitted: Fitted,
    table: pa.Table,
    diagnostics: pa.Table,
) -> Json:
    """The figures of a split.

    everything, whole: all its pairs, and those in the schedule. table: the `kept_columns` of the
    schedule; diagnostics: all its diagnostics; rows like `whole`.
    """
    panel = fitted.recipe.panel
    counts = {
        "pairs": len(whole),
        "excluded": len(everything) - len(whole),
        "predicted": int(predicted(whole).sum()),
        "repeated_calls": annotations.repeated,
        "conflicting_calls": annotations.conflicting,
        "coverage": _coverage(everything, panel),
        "exclusions": _exclusions(everything, panel),
    }
    if not len(whole):
        return counts
    beta = table[DEFAULT_BETA].to_numpy()
    found: Json = rounded(
        counts
        | {
            "beta": _spread(beta),
            "by_category": _by_category(beta, diagnostics),
            "by_disagreement": _by_disagreement(beta, diagnostics),
            "ties": {
                **{
                    name: _share(table[f"category_{name}_{ENSEMBLE}_tie_break"].to_numpy())
                    for name in panel.teachers
                },
                "panel": _share(diagnostics["category_tie_break"].to_numpy()),
            },
            "agreement": _agreement(*_asked(whole, table), panel),
            "served_models": _served_models(_asked(whole, table)[0], panel),
            "estimators": _sensitivity(beta, fitted, diagnostics),
            "fit": fitted.json,
        }
    )
    return found


def _coverage(grid: Grid, panel: Panel) -> Json:
    """Outcomes of each teacher's calls, and the share of pairs that it annotated in full."""
    found = {}
    there = settled(grid)
    for j, teacher in enumerate(panel.teachers):
        counts = np.bincount(grid.outcome[:, j].reshape(-1), minlength=len(OUTCOMES))
        found[teacher] = {
            "outcomes": {str(name): int(n) for name, n in zip(OUTCOMES, counts, strict=True) if n},
            "annotated_pairs": _share(there[:, j].all(axis=1)),
        }
    return found


def _exclusions(grid: Grid, panel: Panel) -> Json:
    """How many pairs miss a call for each reason, by teacher; a pair may count more than once."""
    fault = faults(grid.where(~whole_pairs(grid)))
    found: Json = {}
    for j, teacher in enumerate(panel.teachers):
        of_pairs = Counter(reason for cells in fault[:, j] for reason in set(cells) - {""})
        found |= {f"{teacher}: {reason}": n for reason, n in sorted(of_pairs.items())}
    return found


def _by_category(beta: Floats, diagnostics: pa.Table) -> Json:
    names = np.array(diagnostics["category"].to_pylist(), dtype=object)
    std = diagnostics["teacher_std"].to_numpy()
    return {
        str(name): _spread(beta[part]) | {"teacher_std": float(std[part].mean())}
        for name in CATEGORIES
        if (part := names == str(name)).any()
    }


def _by_disagreement(beta: Floats, diagnostics: pa.Table) -> Json:
    """Beta in the quarters of the teachers' standard deviation (Eq. 37), of pairs that they were
    asked about: a predictor's one number is never disputed."""
    asked = np.flatnonzero(~diagnostics[PREDICTED_COLUMN].to_numpy())
    order = np.argsort(diagnostics["teacher_std"].to_numpy()[asked], kind="stable")
    parts = np.array_split(asked[order], len(QUARTERS))
    return {
        name: _spread(beta[rows]) for name, rows in zip(QUARTERS, parts, strict=True) if len(rows)
    }


def _asked(grid: Grid, table: pa.Table) -> tuple[Grid, pa.Table]:
    """Without the pairs that a predictor told: the same number in every call is no agreement."""
    asked = ~predicted(grid)
    return (grid, table) if asked.all() else (grid.where(asked), table.filter(pa.array(asked)))


def _agreement(grid: Grid, table: pa.Table, panel: Panel) -> Json:
    votes = {"all calls": votes_by_category(grid.category.reshape(len(grid), -1))}
    ens = np.stack(
        [votes_by_category(grid.category[:, j]).argmax(axis=1) for j in range(len(panel.teachers))],
        axis=1,
    )
    votes["teachers"] = votes_by_category(ens)
    gap = ensemble.effective_gap(grid.magnitude, grid.confidence)
    return {
        "teachers": {
            "spearman": _spearman(
                {name: table[f"effective_gap_{name}_{ENSEMBLE}"].to_numpy()
                 for name in panel.teachers}
            ),
            "alpha": nominal_alpha(votes["teachers"]),
            "alpha_by_category": _alphas(votes["teachers"]),
        },
        "variants": {
            teacher: {
                "spearman": _spearman(
                    {name: gap[:, j, k] for k, name in enumerate(panel.variants)}
                ),
                "alpha": nominal_alpha(votes_by_category(grid.category[:, j])),
            }
            for j, teacher in enumerate(panel.teachers)
        },
        "calls": {
            "alpha": nominal_alpha(votes["all calls"]),
            "alpha_by_category": _alphas(votes["all calls"]),
        },
    }  # fmt: skip


def _alphas(votes: np.ndarray) -> Json:
    return {str(name): alpha_of_category(votes, code) for code, name in enumerate(CATEGORIES)}


def _spearman(columns: dict[str, Floats]) -> Json:
    """Rank correlation of each two columns, over the pairs where all are there."""
    there = ~np.isnan(np.stack(list(columns.values()))).any(axis=0)
    ranked = {name: standard_ranks(values[there]) for name, values in columns.items()}
    return {
        f"{one} ~ {other}": rank_product(ranked[one], ranked[other])
        for one, other in itertools.combinations(ranked, 2)
    }


def _served_models(grid: Grid, panel: Panel) -> Json:
    """For each teacher the versions that answered, and what each said on the mean."""
    gap = ensemble.effective_gap(grid.magnitude, grid.confidence)
    found: Json = {}
    for j, teacher in enumerate(panel.teachers):
        served, of_teacher = grid.served[:, j], ~np.isnan(gap[:, j])
        rows = []
        for code in np.unique(served[of_teacher]):
            part = of_teacher & (served == code)
            rows.append(
                {
                    "model": grid.served_names[code] if code >= 0 else None,
                    "calls": int(part.sum()),
                    "gap": float(gap[:, j][part].mean()),
                    "confidence": float(grid.confidence[:, j][part].mean()),
                }
            )
        found[teacher] = sorted(rows, key=lambda row: (-row["calls"], str(row["model"])))
    return found


def _sensitivity(beta: Floats, fitted: Fitted, diagnostics: pa.Table) -> Json:
    """How far each estimator's betas are from the default's."""
    ranked = standard_ranks(beta)
    found = {}
    for row in fitted.recipe.estimators:
        other = diagnostics[row.column].to_numpy()
        moved = np.abs(other - beta)
        found[row.name] = {
            "title": row.title,
            "column": row.column,
            "mean": float(other.mean()),
            "mean_shift": float((other - beta).mean()),
            "mean_move": float(moved.mean()),
            "largest_move": float(moved.max()),
            "moved": _share(moved > MOVED),
            "spearman": rank_product(ranked, standard_ranks(other)),
        }
    return found


def _spread(values: Floats) -> Json:
    quartiles = np.quantile(values, (0.25, 0.5, 0.75))
    return {
        "pairs": len(values),
        "mean": float(values.mean()),
        "std": float(values.std()),
        "min": float(values.min()),
        "quartile_1": float(quartiles[0]),
        "median": float(quartiles[1]),
        "quartile_3": float(quartiles[2]),
        "max": float(values.max()),
    }


def _share(marks: Any) -> float:
    marks = np.asarray(marks)
    return float(marks.mean()) if marks.size else 0.0


def rounded(value: Any) -> Any:
    """Figures rounded; null where there is none, since JSON has no NaN."""
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    if isinstance(value, float):
        return None if np.isnan(value) else round(value, DIGITS)
    return value
