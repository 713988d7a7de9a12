"""What held-out margins say of an arm: in total, by category, by the schedule's beta, by source.

In: one row a held-out pair, its margin in nats. Out: accuracy, mean margin and loss of each group.
Invariant: nothing depends on the arm's own betas, so that arms can be put side by side; the loss is
at the schedule's beta of the pair, for every arm the same, and over the pairs that have one.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sp2dpo_ray.evaluate.compare import accuracy_of

Floats = NDArray[np.float64]
UNKNOWN = "unknown"
SOURCE = "source"
MAX_SOURCES = 50  # more than this are no groups
Scores = dict[str, dict[str, float | int | None]]


def held_out_figures(table: pa.Table) -> dict[str, Any]:
    """Scores of a table with `margin`, `category`, `schedule_beta` and, where the pairs carry one,
    `source`."""
    if not table.num_rows:
        return {"pairs": 0}
    margin = _floats(table, "margin")
    beta = _floats(table, "schedule_beta")
    groups = {
        "by_category": _texts(table, "category"),
        "by_beta": quarters(beta),
    }
    if SOURCE in table.column_names:
        sources = _texts(table, SOURCE)
        if len(set(sources)) <= MAX_SOURCES:
            groups["by_source"] = sources
    whole = _scores(margin, beta, [""] * len(margin))[""]
    return whole | {
        name: _scores(margin, beta, labels, leave_out=UNKNOWN if name == "by_beta" else None)
        for name, labels in groups.items()
    }


def _scores(
    margin_N: Floats, beta_N: Floats, labels: list[str], leave_out: str | None = None
) -> Scores:
    names = np.array(labels, dtype=object)
    with np.errstate(invalid="ignore"):  # NaN where the panel was not asked
        loss = np.logaddexp(0, -beta_N * margin_N)
    found: Scores = {}
    for name in sorted(set(labels) - {leave_out}):
        part = names == name
        known = loss[part][~np.isnan(loss[part])]
        found[name] = {
            "accuracy": float(accuracy_of(margin_N[part]).mean()),
            "margin": float(margin_N[part].mean()),
            "loss": float(known.mean()) if len(known) else None,
            "pairs": int(part.sum()),
        }
    return found


def quarters(beta_N: Floats) -> list[str]:
    """For each pair the quarter of the betas that it lies in, by its bounds; ties stay together."""
    known = beta_N[~np.isnan(beta_N)]
    if not len(known):
        return [UNKNOWN] * len(beta_N)
    edges = np.unique(np.quantile(known, (0, 0.25, 0.5, 0.75, 1)))
    place = np.clip(np.searchsorted(edges, beta_N, side="right") - 1, 0, max(len(edges) - 2, 0))
    names = [f"{low:.3f} to {high:.3f}" for low, high in pairwise(edges)] or [f"{edges[0]:.3f}"]
    return [UNKNOWN if np.isnan(b) else names[k] for b, k in zip(beta_N, place, strict=True)]


def _floats(table: pa.Table, name: str) -> Floats:
    column = table[name].to_numpy(zero_copy_only=False)
    return column.astype(np.float64)  # a null becomes NaN


def _texts(table: pa.Table, name: str) -> list[str]:
    return [UNKNOWN if text is None else str(text) for text in table[name].to_pylist()]
