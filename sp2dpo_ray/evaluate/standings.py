"""Students side by side on a benchmark: figures over all items, gains item by item.

In: each student's result. Out: rows, and the same as Markdown. Invariant: the baseline is chosen on
one half of the items and gains are of the other; an item that one student has no value for is
compared for none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from sp2dpo_ray.core.halves import tuning_half
from sp2dpo_ray.evaluate.compare import gain_on, interval, verdict

LEFT_OUT = ("not_answered", "not_read")
PARTS = ("share ", "score_")  # figures that are parts of another one
Row = dict[str, Any]


def standings(
    benchmark: str, headline: str, results: Mapping[str, Row], tuned: list[str]
) -> list[Row]:
    """A row a student.

    results: `figures`, `values` (item -> number or None), `notes` and `judge` (what it was asked
    and cost, or None) of each. tuned: the students that the baseline is chosen from; none: the
    first of all.
    """
    ids = [
        item
        for item in next(iter(results.values()))["values"]
        if all(result["values"].get(item) is not None for result in results.values())
    ]
    values = {name: np.array([r["values"][i] for i in ids]) for name, r in results.items()}
    half = tuning_half(ids)
    chosen = tuned or list(results)[:1]
    baseline = max(chosen, key=lambda name: float(values[name][half].sum()))
    rows = []
    for name, result in results.items():
        mine = values[name][None, ~half]
        compared = name != baseline and mine.size  # no item that every student has a value for
        gain = gain_on(values[baseline][None, ~half], mine) if compared else None
        rows.append(
            {
                "benchmark": benchmark,
                "model": name,
                "headline": headline,
                "figures": result["figures"],
                "notes": result["notes"],
                "judge": result["judge"],
                "baseline": baseline,
                "items_compared": int((~half).sum()),
                "value": asdict(interval(mine)) if mine.size else None,
                "gain": asdict(gain) if gain else None,
                "verdict": verdict(gain) if compared or name == baseline else "nothing to compare",
            }
        )
    return rows


def markdown(rows: list[Row], shared: list[str]) -> str:
    """A table a benchmark; shared: teachers of the judge's family."""
    lines = []
    if shared:
        lines += [
            f"The judge is of the family of teachers {', '.join(shared)}: it may prefer students "
            "of its own panel.",
            "",
        ]
    for name in dict.fromkeys(row["benchmark"] for row in rows):
        here = [row for row in rows if row["benchmark"] == name]
        figures = [key for key in here[0]["figures"] if not key.startswith(PARTS)]
        lines += [
            f"### {name}",
            "",
            f"Gains on {here[0]['baseline']}, item by item, on {here[0]['items_compared']} items.",
            "",
            f"| student | {' | '.join(figures)} | gain | verdict | left out |",
            "|---" * (len(figures) + 4) + "|",
        ]
        for row in here:
            told = " | ".join(_told(row["figures"][key]) for key in figures)
            left = sum(row["notes"].get(key, 0) for key in LEFT_OUT)
            lines.append(
                f"| {row['model']} | {told} | {_gain(row['gain'])} | {row['verdict']} | {left} |"
            )
        lines.append("")
    return "\n".join(lines)


def _told(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _gain(gain: dict[str, float] | None) -> str:
    if gain is None:
        return ""
    return f"{gain['mean']:+.3f} ({gain['low']:+.3f} to {gain['high']:+.3f})"
