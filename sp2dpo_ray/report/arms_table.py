"""The arms in the form of the paper's Table 16: grouped, in its order, the best of a column marked.

In: figures of each arm. Out: Markdown. Invariant: what an arm lacks is a dash, never a zero, and
the marks come from the printed numbers alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sp2dpo_ray.core.arms import parse_arm
from sp2dpo_ray.core.schedule.grid import Panel

MISSING = "\u2013"  # a dash, as in the paper
BASE = "base"
Cells = Mapping[str, float]  # column -> value


@dataclass(frozen=True, slots=True)
class Line:
    """group: Meth. of the table. label: its Cfg."""

    group: str
    label: str
    arm: str | None


def lines_of(arms: Sequence[str], panel: Panel, *, base: bool = False) -> list[Line]:
    """The table's lines for these arms, the paper's first and in its order, seeds left out.

    base: begin with the student before training.
    """
    bases = list(dict.fromkeys(parse_arm(name).base for name in arms))
    plain = sorted(
        (name for name in bases if parse_arm(name).is_global),
        key=lambda name: parse_arm(name).constant or 0.0,
    )
    order = [("Base", MISSING, BASE)]
    order += [("Rand", "uniform in the envelope", "random")]
    order += [("DPO", f"β={parse_arm(name).constant:g}", name) for name in plain]
    order += [
        ("SP2DPO", f"SA-{teacher}-{variant}", f"sa-{teacher}-{variant}")
        for teacher in panel.teachers
        for variant in panel.variants
    ]
    order += [("SP2DPO", f"SE-{teacher}", f"se-{teacher}") for teacher in panel.teachers]
    order += [("SP2DPO", f"MA-{variant}", f"ma-{variant}") for variant in panel.variants]
    order.append(("SP2DPO", "JMAMP", "jmamp"))
    there = {*bases, *([BASE] if base else [])}
    lines = [Line(group, label, arm) for group, label, arm in order if arm in there]
    named = {line.arm for line in lines}
    return lines + [Line("others", name, name) for name in bases if name not in named]


def markdown(
    lines: Sequence[Line], columns: Sequence[str], cells: Mapping[str, Cells], decimals: int = 2
) -> str:
    """The table; cells: arm -> column -> value. The largest printed number of a column is bold."""
    printed = [
        [_cell(cells.get(line.arm or "", {}), column, decimals) for column in columns]
        for line in lines
    ]
    best = [
        max((float(row[i]) for row in printed if row[i] != MISSING), default=None)
        for i in range(len(columns))
    ]
    rows = [f"| Meth. | Cfg | {' | '.join(columns)} |", "|---" * (2 + len(columns)) + "|"]
    group = None
    for line, row in zip(lines, printed, strict=True):
        marked = [
            f"**{text}**" if text != MISSING and float(text) == top else text
            for text, top in zip(row, best, strict=True)
        ]
        # the group is named on its first line alone
        head = line.group if line.group != group else ""
        group = line.group
        rows.append(f"| {head} | {line.label} | {' | '.join(marked)} |")
    return "\n".join(rows) + "\n"


def _cell(values: Cells, column: str, decimals: int) -> str:
    value = values.get(column)
    return MISSING if value is None else format(value, f".{decimals}f")
