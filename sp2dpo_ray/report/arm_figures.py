"""Figures of training: curves, held-out accuracy, the betas of each arm, the judges' gain.

In: metric rows and comparisons. Out: HTML fragments, see `plots`.
"""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go

from sp2dpo_ray.core.taxonomy import CATEGORIES
from sp2dpo_ray.report.plots import ARM_COLOURS, COLOURS, HEIGHT, PER_ARM, boxes_of, html, short

TICKS = [digit * 10.0**power for power in range(-4, 3) for digit in (1, 2, 3, 5)]  # of beta
Json = dict[str, Any]


def training_curves(curves: dict[str, list[dict[str, float]]], metric: str, title: str) -> str:
    """One metric over the steps of every arm, on the same axes."""
    figure = go.Figure()
    for i, (arm, rows) in enumerate(curves.items()):
        figure.add_trace(
            go.Scatter(
                x=[row["step"] for row in rows],
                y=[row[metric] for row in rows],
                mode="lines+markers" if len(rows) < 60 else "lines",
                name=short(arm),
                line={"color": ARM_COLOURS[i % len(ARM_COLOURS)]},
            )
        )
    figure.update_xaxes(title="step")
    figure.update_yaxes(title=title)
    return html(figure, "curve-" + metric.replace("/", "-"), HEIGHT + 8 * len(curves))


def accuracy_by_arm(rows: list[Json]) -> str:
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
    return html(figure, "accuracy-by-arm", max(HEIGHT, 110 + PER_ARM * len(rows)))


def betas_by_arm(betas: dict[str, list[float]]) -> str:
    """The betas that each arm was trained with: quantiles at 5, 25, 50, 75 and 95 %."""
    figure = boxes_of(list(betas), list(betas.values()), horizontal=True)
    # by itself a logarithmic axis would name 3, 4, 5 ... for 0.03, 0.04, 0.05
    figure.update_xaxes(
        title="beta in training", type="log", tickvals=TICKS, ticktext=[f"{t:g}" for t in TICKS]
    )
    figure.update_yaxes(autorange="reversed")
    return html(figure, "betas-by-arm", max(HEIGHT, 110 + PER_ARM * len(betas)))


def judged_gain(rows: list[Json]) -> str:
    """Length-controlled win rate of each student less that of the best global beta, in points: the
    paper's Figure 2."""
    told = {row["model"]: row["figures"]["length_controlled_winrate"] for row in rows}
    rate = {name: value for name, value in told.items() if value is not None}
    base = rate.get(rows[0]["baseline"])
    # without a rate of the baseline's there is nothing to be more or less than
    models = [name for name in rate if base is not None and name != rows[0]["baseline"]]
    gains = [rate[name] - base for name in models]
    colours = [COLOURS[2] if gain > 0 else COLOURS[1] for gain in gains]
    figure = go.Figure(go.Bar(x=gains, y=models, orientation="h", marker_color=colours))
    figure.update_xaxes(title=f"length-controlled win rate less that of {rows[0]['baseline']}")
    figure.update_yaxes(autorange="reversed")
    return html(figure, "judged-gain")


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
                name=short(arm),
                marker_color=ARM_COLOURS[i % len(ARM_COLOURS)],
            )
        )
    figure.update_layout(barmode="group")
    figure.update_yaxes(title="accuracy", range=[0, 1])
    return html(figure, "accuracy-by-category", HEIGHT + 8 * len(scores))
