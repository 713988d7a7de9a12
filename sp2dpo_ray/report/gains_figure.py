"""The figure of the students: what each method gains on the tuned global beta (Figure 2's form).

In: gains by student. Out: an SVG file. Invariant: drawn from the numbers alone, without a display.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

INK, GROUND = "#30343b", "#ffffff"
COLOURS = {"SP2DPO, best": "#2b8a5e", "SP2DPO, JMAMP": "#4c78a8", "Rand-beta": "#8a8f98"}
HEIGHT = 0.26  # inches of a bar


def draw(gains: Mapping[str, Mapping[str, float]], column: str, path: Path) -> None:
    """gains: student -> method -> points of `column` above the tuned global beta."""
    bars = [
        (student, method, gain)
        for student, row in gains.items()
        for method in COLOURS
        if (gain := row.get(method)) is not None
    ]
    with plt.rc_context(
        {"svg.hashsalt": "sp2dpo", "svg.fonttype": "none", "font.size": 9, "text.color": INK}
    ):
        figure, axis = plt.subplots(
            figsize=(7, 1.2 + HEIGHT * max(len(bars), 1)), facecolor=GROUND, layout="constrained"
        )
        axis.axvline(0, color=INK, linewidth=0.8)
        for place, (_, method, gain) in enumerate(bars):
            drawn = axis.barh(place, gain, color=COLOURS[method], height=0.8)
            axis.bar_label(drawn, fmt="%+.2f", padding=3)
        axis.set_yticks(range(len(bars)), [f"{student}  {method}" for student, method, _ in bars])
        axis.invert_yaxis()
        axis.margins(x=0.18)
        axis.set_xlabel(f"{column}: points above the best global beta")
        axis.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)
