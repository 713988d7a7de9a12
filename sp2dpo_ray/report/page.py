"""The page: what ran, what the panel said, what training made of it.

In: `PageData`. Out: one HTML file that needs nothing else. Invariant: text of pairs and teachers
reaches the page only through the template's escaping.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import Any

import jinja2
import numpy as np
import pyarrow as pa
from plotly.offline import get_plotlyjs

from sp2dpo_ray.core.pairs import Pair
from sp2dpo_ray.core.schedule.audit import REASONS, SAMPLE, view_of
from sp2dpo_ray.core.schedule.columns import DEFAULT_BETA
from sp2dpo_ray.core.schedule.grid import Panel
from sp2dpo_ray.report import figures
from sp2dpo_ray.report.costs import CostRow

PAIRS_SHOWN = 24  # of each kind


@dataclass(frozen=True, slots=True)
class PageData:
    """Everything that the page shows; what a run lacks is empty.

    judged: rows of AlpacaEval 2. betas: of each arm, the quantiles at 5, 25, 50, 75 and 95 %.
    schedule: all columns of `load_schedule`. figures: the content of `diagnostics.json`.
    """

    lambda_record: dict[str, Any]
    stages: dict[str, dict[str, Any]]
    panel: Panel
    schedule: pa.Table
    figures: dict[str, Any]
    pairs: dict[str, Pair]
    arms: list[dict[str, Any]]
    curves: dict[str, list[dict[str, float]]]
    judged: list[dict[str, Any]]
    betas: dict[str, list[float]]
    by_category: dict[str, dict[str, dict[str, float]]]
    without_model: list[str]
    predictors: list[str]
    languages: list[dict[str, Any]]
    costs: list[CostRow]


def render(data: PageData) -> str:
    """The page as one HTML text."""
    folder = resources.files(__package__)
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["number"] = _number
    environment.filters["figure"] = _figure
    template = environment.from_string((folder / "page.html").read_text(encoding="utf-8"))
    charts = {
        "category": figures.beta_by_category(data.schedule),
        "histogram": figures.beta_histogram(data.schedule),
        "agreement": figures.teacher_agreement(data.schedule, data.panel),
    }
    if data.arms:
        charts["accuracy"] = figures.accuracy_by_arm(data.arms)
        charts["by_category"] = figures.accuracy_by_category(data.by_category)
        charts["betas"] = figures.betas_by_arm(data.betas)
        charts["loss"] = figures.training_curves(data.curves, "loss", "loss")
        charts["margin"] = figures.training_curves(data.curves, "logratio/margins", "margin, nats")
    if data.judged:
        charts["judged"] = figures.judged_gain(data.judged)
    return template.render(
        data=data,
        charts=charts,
        groups=shown_pairs(data),
        style=(folder / "page.css").read_text(encoding="utf-8"),
        plotly=get_plotlyjs(),
    )


def shown_pairs(data: PageData) -> list[tuple[str, list[dict[str, Any]]]]:
    """The pairs with the highest and lowest beta, and those that the audit would list first."""
    view = view_of(data.schedule, data.panel, seed=0)
    rising = np.argsort(view.beta, kind="stable")
    kinds = [
        ("Highest beta: the clearest gaps", rising[::-1][:PAIRS_SHOWN]),
        ("Lowest beta: taste, doubt, or a wrong label", rising[:PAIRS_SHOWN]),
        *((r.title, r.rows(view, PAIRS_SHOWN)) for r in REASONS if r.name != SAMPLE),
    ]
    return [(title, [_pair_row(data, int(row)) for row in rows]) for title, rows in kinds]


def _pair_row(data: PageData, row: int) -> dict[str, Any]:
    values = {name: data.schedule[name][row].as_py() for name in data.schedule.column_names}
    calls = [
        {
            "teacher": teacher,
            "variant": variant,
            **{
                name: values[f"{name}_{teacher}_{variant}"]
                for name in ("category", "magnitude", "confidence", "effective_gap", "beta")
            },
        }
        for teacher in data.panel.teachers
        for variant in data.panel.variants
    ]
    return {
        "pair": data.pairs[values["prompt_id"]],
        "beta": values[DEFAULT_BETA],
        "category": values["category"],
        "dispute": values["teacher_std"],
        "calls": calls,
    }


def _figure(value: float | None, form: str = ".2f") -> str:
    """A figure, or nothing where there is none."""
    return "" if value is None else format(value, form)


def _number(value: Any, form: str = ",.4g") -> str:
    return format(value, form) if isinstance(value, float) else f"{value:,}"
