"""The figures of the page, each a plotly figure made of published tables.

In: Arrow tables and metric rows. Out: HTML fragments without the plotly library (the page carries
it once). Invariant: no pair text enters a figure; only names, categories and numbers.
"""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import pyarrow as pa
import pyarrow.compute as pc

from sp2dpo_ray.core.schedule.agreement import spearman
from sp2dpo_ray.core.schedule.columns import DEFAULT_BETA, ENSEMBLE, PREDICTED_COLUMN
from sp2dpo_ray.core.schedule.grid import Panel
from sp2dpo_ray.core.taxonomy import CATEGORIES

INK = "#8a8f98"  # readable on light and dark ground
COLOURS = ("#4c78a8", "#e45756", "#54a24b", "#f58518", "#72b7b2", "#b279a2")
HEIGHT = 340  # pixels
LONGEST_NAME = 24  # letters of an arm in a legend
PER_ARM = 26  # of a figure with a line an arm
ARM_COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#e45756", "#b279a2", "#72b7b2", "#9d755d")


def beta_by_category(schedule: pa.Table) -> str:
    """Distribution of the default schedule's beta in each category of the panel."""
    beta = schedule[DEFAULT_BETA].to_numpy()
    category = np.array(schedule["category"].to_pylist(), dtype=object)
    figure = go.Figure()
    for colour, name in zip(COLOURS, CATEGORIES, strict=True):
        part = beta[category == str(name)]
        if len(part):
            label = f"{name} ({len(part)})"
            figure.add_trace(
                go.Box(y=part, name=label, marker_color=colour, boxpoints="outliers", boxmean=True)
            )
    figure.update_yaxes(title="beta")
    figure.update_layout(showlegend=False)  # the axis names them
    return _html(figure, "beta-by-category")


def beta_histogram(schedule: pa.Table) -> str:
    """The default schedule's betas beside the random control's."""
    figure = go.Figure()
    for name, column, colour in (
        ("jmamp", DEFAULT_BETA, COLOURS[0]),
        ("random", "beta_random", INK),
    ):
        figure.add_trace(
            go.Histogram(
                x=schedule[column].to_numpy(),
                name=name,
                marker_color=colour,
                opacity=0.65,
                nbinsx=40,
            )
        )
    figure.update_layout(barmode="overlay")
    figure.update_xaxes(title="beta")
    figure.update_yaxes(title="pairs")
    return _html(figure, "beta-histogram")


def teacher_agreement(schedule: pa.Table, panel: Panel) -> str:
    """Between teachers: rank correlation of beta (upper), share of equal categories (lower);
    without pairs that a predictor told."""
    names = list(panel.teachers)
    schedule = schedule.filter(pc.invert(schedule[PREDICTED_COLUMN]))
    beta = [schedule[f"beta_{name}_{ENSEMBLE}"].to_numpy() for name in names]
    category = [
        np.array(schedule[f"category_{name}_{ENSEMBLE}"].to_pylist(), dtype=object)
        for name in names
    ]
    size = len(names)
    values = np.ones((size, size))
    for i in range(size):
        for j in range(size):
            if i < j:
                values[i, j] = spearman(beta[i], beta[j])
            elif i > j:
                values[i, j] = float((category[i] == category[j]).mean())
    text = [["" if np.isnan(cell) else f"{cell:.2f}" for cell in row] for row in values]
    figure = go.Figure(
        go.Heatmap(
            z=values,
            x=names,
            y=names,
            text=text,
            texttemplate="%{text}",
            zmin=0,
            zmax=1,
            colorscale="Blues",
        )
    )
    figure.update_yaxes(autorange="reversed")
    return _html(figure, "teacher-agreement")


def training_curves(curves: dict[str, list[dict[str, float]]], metric: str, title: str) -> str:
    """One metric over the steps of every arm, on the same axes."""
    figure = go.Figure()
    for i, (arm, rows) in enumerate(curves.items()):
        figure.add_trace(
            go.Scatter(
                x=[row["step"] for row in rows],
                y=[row[metric] for row in rows],
                mode="lines+markers",
                name=_short(arm),
                line={"color": ARM_COLOURS[i % len(ARM_COLOURS)]},
            )
        )
    figure.update_xaxes(title="step")
    figure.update_yaxes(title=title)
    return _html(figure, "curve-" + metric.replace("/", "-"), HEIGHT + 8 * len(curves))


def accuracy_by_arm(rows: list[dict]) -> str:
    """Held-out preference accuracy of each arm with its interval."""
    figure = go.Figure(
        go.Scatter(
            x=[row["accuracy"]["mean"] for row in rows],
            y=[row["arm"] for row in rows],
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [row["accuracy"]["high"] - row["accuracy"]["mean"] for row in rows],
                "arrayminus": [row["accuracy"]["mean"] - row["accuracy"]["low"] for row in rows],
            },
            mode="markers",
            marker={"size": 11, "color": COLOURS[0]},
        )
    )
    figure.update_xaxes(title="accuracy")
    figure.update_yaxes(autorange="reversed")
    return _html(figure, "accuracy-by-arm", max(HEIGHT, 110 + PER_ARM * len(rows)))


def betas_by_arm(betas: dict[str, list[float]]) -> str:
    """The betas that each arm was trained with: quantiles at 5, 25, 50, 75 and 95 %."""
    low, first, median, third, high = (list(column) for column in zip(*betas.values(), strict=True))
    figure = go.Figure(
        go.Box(
            y=list(betas), lowerfence=low, q1=first, median=median, q3=third, upperfence=high,
            orientation="h", marker_color=COLOURS[0],
        )
    )  # fmt: skip
    figure.update_xaxes(title="beta in training", type="log")
    figure.update_yaxes(autorange="reversed")
    return _html(figure, "betas-by-arm", max(HEIGHT, 110 + PER_ARM * len(betas)))


def judged_gain(rows: list[dict]) -> str:
    """Length-controlled win rate of each student less that of the best global beta, in points: the
    paper's Figure 2."""
    rate = {row["model"]: row["figures"]["length_controlled_winrate"] for row in rows}
    base = rate[rows[0]["baseline"]]
    models = [name for name in rate if name != rows[0]["baseline"]]
    gains = [rate[name] - base for name in models]
    colours = [COLOURS[2] if gain > 0 else COLOURS[1] for gain in gains]
    figure = go.Figure(go.Bar(x=gains, y=models, orientation="h", marker_color=colours))
    figure.update_xaxes(title=f"length-controlled win rate less that of {rows[0]['baseline']}")
    figure.update_yaxes(autorange="reversed")
    return _html(figure, "judged-gain")


def accuracy_by_category(scores: dict[str, dict[str, dict[str, float]]]) -> str:
    """Held-out accuracy by category: scores[arm][category]."""
    figure = go.Figure()
    present = {name for groups in scores.values() for name in groups}
    order = [*(str(name) for name in CATEGORIES if str(name) in present)]
    order += sorted(present - set(order))
    for i, (arm, groups) in enumerate(scores.items()):
        figure.add_trace(
            go.Bar(
                x=[f"{name} ({groups[name]['pairs']})" for name in order if name in groups],
                y=[groups[name]["accuracy"] for name in order if name in groups],
                name=_short(arm),
                marker_color=ARM_COLOURS[i % len(ARM_COLOURS)],
            )
        )
    figure.update_layout(barmode="group")
    figure.update_yaxes(title="accuracy", range=[0, 1])
    return _html(figure, "accuracy-by-category", HEIGHT + 8 * len(scores))


def _short(arm: str) -> str:
    """A name that a legend has room for."""
    return arm if len(arm) <= LONGEST_NAME else arm[: LONGEST_NAME - 1] + "\u2026"


def _html(figure: go.Figure, name: str, height: int = HEIGHT) -> str:
    figure.update_layout(
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": INK, "family": "system-ui, sans-serif", "size": 13},
        margin={"l": 70, "r": 20, "t": 10, "b": 60},
        height=height,
        # above the axes, whatever room it takes: names of arms may be long
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
    )
    figure.update_xaxes(gridcolor="rgba(138,143,152,.25)", zeroline=False, automargin=True)
    figure.update_yaxes(gridcolor="rgba(138,143,152,.25)", zeroline=False, automargin=True)
    config = {"displayModeBar": False, "responsive": True}
    return str(figure.to_html(full_html=False, include_plotlyjs=False, div_id=name, config=config))
