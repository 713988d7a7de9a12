"""The audit list: the pairs most worth a person's look, and a fair sample beside them.

In: a schedule with its diagnostics. Out: prompt ids with the reasons why they are listed.
Invariant: a reason is a row of `REASONS`; each list is spread over the categories, so that the most
frequent one does not fill it; the sample is drawn by content.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sp2dpo_ray.core.hashing import uniform_draws
from sp2dpo_ray.core.schedule import ensemble
from sp2dpo_ray.core.schedule.columns import DEFAULT_BETA, ENSEMBLE
from sp2dpo_ray.core.schedule.ensemble import Floats
from sp2dpo_ray.core.schedule.grid import PREDICTED_COLUMN, Panel
from sp2dpo_ray.core.taxonomy import Category

FLIPPED, SAMPLE = "flipped", "sample"
OF_CATEGORY = "of_category"
UNSURE = 0.5  # a confidence below this says that the label is more likely wrong than right


@dataclass(frozen=True, slots=True)
class View:
    """What the reasons look at; (N,) and (N, J)."""

    beta: Floats
    category: NDArray[np.object_]
    teacher_std: Floats
    prompt_disagreement_NJ: Floats
    magnitude_NJ: Floats
    confidence_NJ: Floats
    draws: Floats


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a pair is listed: the highest scores first; NaN: not for this pair."""

    name: str
    title: str
    score: Callable[[View], Floats]

    def rows(self, view: View, count: int) -> NDArray[np.int64]:
        """The `count` rows with the highest scores, taken from the categories in turn."""
        return spread_over(self.score(view), view.category, count)


def _where(keep: NDArray[np.bool_], score: Floats) -> Floats:
    return np.where(keep, score, np.nan)


REASONS: tuple[Reason, ...] = (
    Reason(
        FLIPPED,
        "Likely flipped: a large gap, and little confidence that the order is right",
        lambda view: _where(
            view.confidence_NJ.mean(axis=1) < UNSURE,
            (view.magnitude_NJ * (1 - view.confidence_NJ)).mean(axis=1),
        ),
    ),
    Reason(
        "conflict",
        "Teachers in conflict: their betas lie far apart (Eq. 37)",
        lambda view: _where(view.teacher_std > 0, view.teacher_std),
    ),
    Reason(
        "safety",
        "Safety at high beta: a wrong label here does the most harm",
        lambda view: _where(view.category == str(Category.SAFETY), view.beta),
    ),
    Reason(
        "wording",
        "Answers that hang on the wording of the question (Eq. 36)",
        lambda view: _where(
            view.prompt_disagreement_NJ.max(axis=1) > 0, view.prompt_disagreement_NJ.max(axis=1)
        ),
    ),
    Reason(
        SAMPLE,
        "A sample of every category, drawn by content: what agreement is measured on",
        lambda view: view.draws,
    ),
)


def columns_read(panel: Panel) -> list[str]:
    """The columns of `load_schedule` that the list needs."""
    return [
        DEFAULT_BETA, "category", "teacher_std", PREDICTED_COLUMN,
        *(f"prompt_disagreement_{t}" for t in panel.teachers),
        *(f"{what}_{t}_{v}" for _, _, t, v in panel.calls for what in ("magnitude", "confidence")),
        *(f"{what}_{t}_{ENSEMBLE}" for t in panel.teachers
          for what in ("category", "effective_gap")),
    ]  # fmt: skip


def audit_list(table: pa.Table, panel: Panel, *, each: int, sample: int, seed: int) -> pa.Table:
    """The listed pairs: all columns of `table`; `why`, the names of the reasons; `of_category`, how
    many pairs of its category the schedule has. The most urgent reason first.

    table: `columns_read` of a schedule. each: pairs for each reason; sample: pairs of the fair
    sample, as many of every category as there are.
    """
    view = view_of(table, panel, seed)
    why: dict[int, list[str]] = {}
    for reason in REASONS:
        for row in reason.rows(view, sample if reason.name == SAMPLE else each):
            why.setdefault(int(row), []).append(reason.name)
    rows = pa.array(list(why), pa.int64())
    reasons = pa.array([" ".join(names) for names in why.values()], pa.string())
    count = Counter(view.category)
    listed = table.take(rows).append_column("why", reasons)
    of_category = pa.array([count[name] for name in view.category[list(why)]], pa.int64())
    listed = listed.append_column(OF_CATEGORY, of_category)
    for what, values in (("magnitude", view.magnitude_NJ), ("confidence", view.confidence_NJ)):
        for j, teacher in enumerate(panel.teachers):
            column = pa.array(values[:, j]).take(rows)
            listed = listed.append_column(f"{what}_{teacher}_{ENSEMBLE}", column)
    return listed


def doubted(table: pa.Table, panel: Panel) -> int:
    """How many pairs the panel finds more likely labelled the wrong way round than not."""
    view = view_of(table, panel, seed=0)
    (flipped,) = (reason for reason in REASONS if reason.name == FLIPPED)
    return int((~np.isnan(flipped.score(view))).sum())


def view_of(table: pa.Table, panel: Panel, seed: int) -> View:
    """What the reasons look at, from `columns_read` of a schedule."""

    def medians(what: str) -> Floats:
        """Median over the prompts of each teacher."""
        calls = np.stack(
            [table[f"{what}_{t}_{v}"].to_numpy() for _, _, t, v in panel.calls], axis=1
        )
        shape = (table.num_rows, len(panel.teachers), len(panel.variants))
        return ensemble.median_over_prompts(calls.reshape(shape))

    return View(
        table[DEFAULT_BETA].to_numpy(),
        np.array(table["category"].to_pylist(), dtype=object),
        table["teacher_std"].to_numpy(),
        np.stack([table[f"prompt_disagreement_{t}"].to_numpy() for t in panel.teachers], axis=1),
        medians("magnitude"),
        medians("confidence"),
        uniform_draws(table["prompt_id"].to_pylist(), seed=seed, purpose="audit"),
    )


def spread_over(score: Floats, category: NDArray[np.object_], count: int) -> NDArray[np.int64]:
    """Rows of the highest scores, taken from the categories in turn; NaN is never taken."""
    order = np.argsort(-score, kind="stable")  # NaN comes last
    order = order[~np.isnan(score[order])]
    turn = np.empty(len(order), np.int64)
    for name in set(category[order]):
        mine = category[order] == name
        turn[mine] = np.arange(mine.sum())
    return np.asarray(order[np.argsort(turn, kind="stable")][:count])
