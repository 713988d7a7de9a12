"""How every figure of the page is drawn: colours, axes, and the way into HTML.

In: a plotly figure. Out: an HTML fragment without the plotly library (the page carries it once).
Invariant: a figure holds counts and quantiles, never a value a pair, so that the page does not grow
with the data.
"""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

INK = "#8a8f98"  # until page.css gives text the colour of its ground
COLOURS = ("#4c78a8", "#e45756", "#54a24b", "#f58518", "#72b7b2", "#b279a2")
ARM_COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#e45756", "#b279a2", "#72b7b2", "#9d755d")
HEIGHT = 340  # pixels
PER_ARM = 26  # of a figure with a line an arm
LONGEST_NAME = 24  # letters of an arm in a legend
BINS = 40
FIVE = (0.05, 0.25, 0.5, 0.75, 0.95)  # quantiles of a box: whiskers, quarters, median
Floats = NDArray[np.float64]
# dark where there is nothing, on a light ground and on a dark one
DENSITY = ((0, "rgba(76,120,168,0)"), (0.01, "rgba(76,120,168,.4)"), (1, "#e9a23b"))


def html(figure: go.Figure, name: str, height: int = HEIGHT) -> str:
    """The figure as a fragment; name: the id of its element."""
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


def short(arm: str) -> str:
    """A name that a legend has room for."""
    return arm if len(arm) <= LONGEST_NAME else arm[: LONGEST_NAME - 1] + "\u2026"


def boxes(groups: dict[str, Floats], *, horizontal: bool = False) -> go.Figure:
    """A box a group: the middle half, the median, whiskers from 5 to 95 %."""
    names = list(groups)
    quantiles = [np.quantile(values, FIVE).tolist() for values in groups.values()]
    return boxes_of(names, quantiles, horizontal=horizontal)


def boxes_of(
    names: list[str], quantiles: list[list[float]], *, horizontal: bool = False
) -> go.Figure:
    """The same from `FIVE` quantiles of each."""
    low, first, median, third, high = (list(column) for column in zip(*quantiles, strict=True))
    place = {"y": names, "orientation": "h"} if horizontal else {"x": names}
    box = go.Box(
        **place, lowerfence=low, q1=first, median=median, q3=third, upperfence=high,
        marker_color=COLOURS[0],
    )  # fmt: skip
    return go.Figure(box)


def histograms(series: dict[str, Floats], *, edges: Floats | None = None) -> go.Figure:
    """How often each value comes, one series over the other, in the same bins."""
    if edges is None:
        edges = bin_edges(np.concatenate(list(series.values())))
    middle = (edges[:-1] + edges[1:]) / 2
    figure = go.Figure()
    for i, (name, values) in enumerate(series.items()):
        counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
        figure.add_trace(
            go.Bar(
                x=middle.tolist(), y=counts.tolist(), width=np.diff(edges).tolist(), name=name,
                marker_color=COLOURS[i % len(COLOURS)], opacity=0.65,
            )
        )  # fmt: skip
    figure.update_layout(barmode="overlay", bargap=0, showlegend=len(series) > 1)
    figure.update_yaxes(title="pairs")
    return figure


def density(x: Floats, y: Floats, names: tuple[str, str]) -> go.Figure:
    """Where the pairs lie in two measures; brightness is the logarithm of their number."""
    across, up = bin_edges(x), bin_edges(y)
    counts, _, _ = np.histogram2d(
        np.clip(x, across[0], across[-1]), np.clip(y, up[0], up[-1]), (across, up)
    )
    figure = go.Figure(
        go.Heatmap(
            x=((across[:-1] + across[1:]) / 2).tolist(),
            y=((up[:-1] + up[1:]) / 2).tolist(),
            z=np.log10(1 + counts.T).round(3).tolist(),
            customdata=counts.T.astype(int).tolist(),
            hovertemplate=f"{names[0]} %{{x:.3g}}<br>{names[1]} %{{y:.3g}}<br>"
            "%{customdata} pairs<extra></extra>",
            colorscale=DENSITY,
            showscale=False,
        )
    )
    figure.update_xaxes(title=names[0])
    figure.update_yaxes(title=names[1])
    return figure


def bin_edges(values: Floats, bins: int = BINS) -> Floats:
    """Edges over all but the outermost half percent at each end, which counts to the last bin."""
    low, high = (float(edge) for edge in np.quantile(values, (0.005, 0.995)))
    return np.linspace(low, high if high > low else low + 1.0, bins + 1)
