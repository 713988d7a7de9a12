"""The page: what ran, what the panel said, what training made of it.

In: `PageData`. Out: `index.html`, which holds all but the pairs, and `pairs/` beside it. Invariant:
text of pairs and teachers reaches the page only through the template's escaping or as JSON strings
that the script writes as text.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import pyarrow as pa
from plotly.offline import get_plotlyjs

from sp2dpo_ray.config.panel import RULES
from sp2dpo_ray.core.pairs import Pair
from sp2dpo_ray.core.schedule.audit import REASONS
from sp2dpo_ray.core.schedule.grid import Panel
from sp2dpo_ray.core.taxonomy import CATEGORIES
from sp2dpo_ray.report import arm_figures, schedule_figures
from sp2dpo_ray.report.costs import CostRow
from sp2dpo_ray.report.measures import Floats, measure
from sp2dpo_ray.report.overview import FEWEST_PAIRS, about, overview
from sp2dpo_ray.report.pieces import FOLDER, write_pieces

STYLES = ("page.css", "browser.css")
SCRIPTS = ("page.js", "difference.js", "verdicts.js", "browser.js")


@dataclass(frozen=True, slots=True)
class PageData:
    """Everything that the page shows; what a run lacks is empty.

    arms: rows of the comparison, empty where no pair was held out. curves: of each trained arm.
    judged: rows of AlpacaEval 2. betas: of each arm, the quantiles at 5, 25, 50, 75 and 95 %.
    schedule: all columns of `load_schedule`; digest: of its artifact. figures: the content of
    `diagnostics.json`. score_gap: of each row of the schedule, where the data has scores. listed:
    pairs of the audit list with their reasons, most urgent first. flipped: how many labels are in
    doubt. prompt_languages: of each pair.
    """

    lambda_record: dict[str, Any]
    stages: dict[str, dict[str, Any]]
    panel: Panel
    schedule: pa.Table
    digest: str
    figures: dict[str, Any]
    pairs: dict[str, Pair]
    score_gap: Floats | None
    listed: dict[str, str]
    flipped: int
    arms: list[dict[str, Any]]
    curves: dict[str, list[dict[str, float]]]
    judged: list[dict[str, Any]]
    betas: dict[str, list[float]]
    by_category: dict[str, dict[str, dict[str, float]]]
    without_model: dict[str, str]
    predictors: list[str]
    languages: list[dict[str, Any]]
    prompt_languages: dict[str, str]
    costs: list[CostRow]


def write_page(data: PageData, folder: Path) -> None:
    """Write `index.html` and `pairs/` into the folder."""
    pairs = [data.pairs[name] for name in data.schedule["prompt_id"].to_pylist()]
    measures = measure(data.schedule, data.panel, pairs, data.score_gap)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sp2dpo_ray.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"number": _number, "figure": _figure, "readable": _readable}
    text = environment.get_template("page.html").render(
        data=data,
        rules=RULES,
        fewest_pairs=FEWEST_PAIRS,
        about=about(
            data.lambda_record["config"], data.panel, data.schedule.num_rows, len(data.curves)
        ),
        cards=overview(
            data.schedule, data.panel, data.figures, data.flipped, data.arms,
            len(data.curves), data.judged, data.costs,
        ),
        charts=_charts(data),
        of_the_data=schedule_figures.of_the_data(measures),
        reasons=REASONS,
        categories=[str(name) for name in CATEGORIES],
        style="\n".join(_static(name) for name in STYLES),
        script="\n".join(_static(name) for name in SCRIPTS),
        plotly=get_plotlyjs(),
    )  # fmt: skip
    (folder / "index.html").write_text(text, encoding="utf-8")
    write_pieces(
        folder / FOLDER, data.schedule, data.panel, pairs, measures, data.listed,
        data.prompt_languages,
    )  # fmt: skip


def _static(name: str) -> str:
    return (resources.files(__package__) / "static" / name).read_text(encoding="utf-8")


def _charts(data: PageData) -> dict[str, str]:
    charts = {
        "category": schedule_figures.beta_by_category(data.schedule),
        "teacher": schedule_figures.beta_by_teacher(data.schedule, data.panel),
        "histogram": schedule_figures.beta_histogram(data.schedule),
        "agreement": schedule_figures.teacher_agreement(data.schedule, data.panel),
        "calls": schedule_figures.call_agreement(data.schedule, data.panel),
    }
    if data.arms:
        charts["accuracy"] = arm_figures.accuracy_by_arm(data.arms)
        charts["by_category"] = arm_figures.accuracy_by_category(data.by_category)
    if data.curves:
        charts["betas"] = arm_figures.betas_by_arm(data.betas)
        charts["loss"] = arm_figures.training_curves(data.curves, "loss", "loss")
        charts["margin"] = arm_figures.training_curves(
            data.curves, "logratio/margins", "margin, nats"
        )
    if data.judged:
        charts["judged"] = arm_figures.judged_gain(data.judged)
    return charts


def _figure(value: float | None, form: str = ".2f") -> str:
    """A figure, or nothing where there is none."""
    return "" if value is None else format(value, form)


def _readable(value: Any) -> str:
    """JSON for a person; the template escapes it like any text."""
    return json.dumps(value, indent=2, ensure_ascii=False)


def _number(value: Any, form: str = ",.4g") -> str:
    return format(value, form) if isinstance(value, float) else f"{value:,}"
