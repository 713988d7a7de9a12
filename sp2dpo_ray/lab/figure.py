"""The testbed's figure: what each arm gains on the tuned global beta, a panel a world.

In: rows. Out: an SVG file. Invariant: drawn from the rows alone, without a display.
"""

from __future__ import annotations

import math
import textwrap
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from sp2dpo_ray.lab.table import Row

INK, GROUND = "#30343b", "#ffffff"
COLOURS = {"better": "#2b8a5e", "worse": "#c4473d", "not told apart": "#6f7782"}
COLUMNS = 2
WIDTH = 56  # letters of a panel's title on a line
LEAST_REACH = 6.0  # points that every panel shows


def draw(rows: list[Row], titles: dict[str, str], path: Path) -> None:
    """Dots with intervals; a colour a verdict."""
    worlds = list(dict.fromkeys(row.world for row in rows))
    shown = [[row for row in rows if row.world == world and row.gain] for world in worlds]
    lines = math.ceil(len(worlds) / COLUMNS)
    with plt.rc_context(
        {"svg.hashsalt": "sp2dpo", "svg.fonttype": "none", "font.size": 9, "text.color": INK}
    ):
        figure, axes = plt.subplots(
            lines, COLUMNS, figsize=(10, 0.6 + lines * (1.1 + 0.19 * max(map(len, shown)))),
            squeeze=False, facecolor=GROUND,
        )  # fmt: skip
        for place, (world, part) in enumerate(zip(worlds, shown, strict=True)):
            _panel(axes[place // COLUMNS][place % COLUMNS], titles[world], rows, part)
        for place in range(len(worlds), lines * COLUMNS):
            axes[place // COLUMNS][place % COLUMNS].set_axis_off()
        figure.supxlabel("true win rate less that of the best global beta, points", fontsize=9)
        figure.tight_layout()
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


def _panel(axis: plt.Axes, title: str, rows: list[Row], part: list[Row]) -> None:
    baseline = next(row for row in rows if row.world == part[0].world and row.gain is None)
    axis.axvline(0, color=INK, linewidth=0.8)
    for place, row in enumerate(part):
        assert row.gain is not None
        mean, low, high = (100 * value for value in (row.gain.mean, row.gain.low, row.gain.high))
        colour = COLOURS[row.verdict]
        axis.plot([low, high], [place, place], color=colour, linewidth=1.6)
        axis.plot([mean], [place], "o", color=colour, markersize=4.5)
    axis.set_yticks(range(len(part)), [row.arm for row in part])
    axis.invert_yaxis()
    head = f"{title} (best global beta: {baseline.arm}, {100 * baseline.won.mean:.1f} %)"
    axis.set_title(textwrap.fill(head, WIDTH), fontsize=9, loc="left")
    reach = max(
        LEAST_REACH, *(abs(100 * end) for r in part if r.gain for end in (r.gain.low, r.gain.high))
    )
    axis.set_xlim(-1.05 * reach, min(1.05 * reach, 3 * LEAST_REACH))
    axis.grid(axis="x", color="#d9dce1", linewidth=0.6)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
