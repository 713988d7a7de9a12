"""Figures of the schedule and of the data behind it: the paper's appendix E on one's own pairs.

In: the schedule's columns and `Measures`. Out: HTML fragments, see `plots`. Invariant: pairs that a
predictor told count for no agreement.
"""

from __future__ import annotations

import itertools

import numpy as np
import plotly.graph_objects as go
import pyarrow as pa
import pyarrow.compute as pc

from sp2dpo_ray.core.schedule.agreement import spearman
from sp2dpo_ray.core.schedule.columns import DEFAULT_BETA, ENSEMBLE, PREDICTED_COLUMN
from sp2dpo_ray.core.schedule.grid import Panel
from sp2dpo_ray.core.taxonomy import CATEGORIES
from sp2dpo_ray.report.measures import Measures, correlations
from sp2dpo_ray.report.plots import HEIGHT, Floats, boxes, density, histograms, html

# of the matrices: light enough everywhere for the numbers in the cells
Scale = tuple[tuple[float, str], ...]
SHARE: Scale = ((0, "#eef3f9"), (1, "#6b9bd1"))
BOTH_WAYS: Scale = ((0, "#e07b6a"), (0.5, "#f7f7f7"), (1, "#6b9bd1"))
NUMBER = "#111111"


def beta_by_category(schedule: pa.Table) -> str:
    """The default schedule's beta in each category of the panel."""
    beta = schedule[DEFAULT_BETA].to_numpy()
    category = np.array(schedule["category"].to_pylist(), dtype=object)
    figure = boxes(
        {
            f"{name} ({part.sum():,})": beta[part]
            for name in CATEGORIES
            if (part := category == str(name)).any()
        }
    )
    figure.update_yaxes(title="beta")
    return html(figure, "beta-by-category")


def beta_by_teacher(schedule: pa.Table, panel: Panel) -> str:
    """The beta of each teacher over its prompts, beside the panel's."""
    groups = {
        name: values[~np.isnan(values)]
        for name in panel.teachers
        if not np.isnan(values := schedule[f"beta_{name}_{ENSEMBLE}"].to_numpy()).all()
    }
    figure = boxes(groups | {"the panel": schedule[DEFAULT_BETA].to_numpy()})
    figure.update_yaxes(title="beta")
    return html(figure, "beta-by-teacher")


def beta_histogram(schedule: pa.Table) -> str:
    """The default schedule's betas beside the random control's."""
    columns = {"jmamp": schedule[DEFAULT_BETA], "random": schedule["beta_random"]}
    figure = histograms({name: column.to_numpy() for name, column in columns.items()})
    figure.update_xaxes(title="beta")
    return html(figure, "beta-histogram")


def teacher_agreement(schedule: pa.Table, panel: Panel) -> str:
    """Between teachers: rank correlation of beta (upper), share of equal categories (lower)."""
    names = list(panel.teachers)
    schedule = schedule.filter(pc.invert(schedule[PREDICTED_COLUMN]))
    beta = [schedule[f"beta_{name}_{ENSEMBLE}"].to_numpy() for name in names]
    category = [
        np.array(schedule[f"category_{name}_{ENSEMBLE}"].to_pylist(), dtype=object)
        for name in names
    ]
    values = np.ones((len(names), len(names)))
    for i, j in itertools.combinations(range(len(names)), 2):
        values[i, j] = spearman(beta[i], beta[j])
        values[j, i] = float((category[i] == category[j]).mean())
    return html(_matrix(values, names, SHARE, (0, 1)), "teacher-agreement")


def call_agreement(schedule: pa.Table, panel: Panel) -> str:
    """Rank correlation of the effective gap between any two calls: whether teachers or prompts make
    the difference."""
    schedule = schedule.filter(pc.invert(schedule[PREDICTED_COLUMN]))
    names = [f"{teacher} {variant}" for _, _, teacher, variant in panel.calls]
    gaps = [schedule[f"effective_gap_{t}_{v}"].to_numpy() for _, _, t, v in panel.calls]
    values = np.array([[spearman(one, other) for other in gaps] for one in gaps])
    height = max(HEIGHT, 160 + 30 * len(names))
    return html(_matrix(values, names, SHARE, (0, 1)), "call-agreement", height)


def of_the_data(measures: Measures) -> dict[str, str]:
    """What the paper's appendix E looks at: lengths, overlap, what beta follows; by name."""
    found = {
        "lengths": histograms(
            {"chosen": measures.chosen_words, "rejected": measures.rejected_words}
        ).update_xaxes(title="words of a response"),
        "overlap": histograms({"overlap": measures.overlap}).update_xaxes(
            title="words that both responses share (Jaccard)"
        ),
        "std": density(measures.teacher_std, measures.beta, ("deviation among teachers", "beta")),
        "longer": density(measures.longer, measures.beta, ("chosen longer by, words", "beta")),
    }
    if measures.score_gap is not None:
        found["score"] = density(measures.score_gap, measures.beta, ("score gap", "beta"))
        found["longer-score"] = density(
            measures.score_gap, measures.longer, ("score gap", "chosen longer by, words")
        )
    names, values = correlations(measures)
    drawn = {name: html(figure, f"data-{name}") for name, figure in found.items()}
    matrix = _matrix(values, names, BOTH_WAYS, (-1, 1))
    return drawn | {"correlations": html(matrix, "data-correlations", HEIGHT + 160)}


def _matrix(values: Floats, names: list[str], colours: Scale, ends: tuple[int, int]) -> go.Figure:
    """A square of numbers, the first row on top; nothing where a number is not defined."""
    text = [["" if np.isnan(cell) else f"{cell:.2f}" for cell in row] for row in values]
    shown = [[None if np.isnan(cell) else float(cell) for cell in row] for row in values]
    figure = go.Figure(
        go.Heatmap(
            z=shown, x=names, y=names, text=text, texttemplate="%{text}",
            textfont={"color": NUMBER}, zmin=ends[0], zmax=ends[1], colorscale=colours,
            showscale=False,
        )
    )  # fmt: skip
    figure.update_yaxes(autorange="reversed")
    return figure
