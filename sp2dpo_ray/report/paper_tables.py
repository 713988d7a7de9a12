"""Students side by side, in the form of the paper's Tables 2, 3 and 16 and its Figure 2.

In: each student's arms with their figures. Out: Markdown, and gains on the tuned global beta.
Invariant: every row names the arm that its numbers are of; what was not run is a dash, never a
zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sp2dpo_ray.core.arms import parse_arm
from sp2dpo_ray.core.schedule.grid import Panel
from sp2dpo_ray.report.arms_table import BASE, MISSING, Cells, Line, lines_of, markdown

DEFAULT, CONTROL = "jmamp", "random"
CAUTION = (
    "Where a row shows the best of several arms, it was chosen by the numbers that it shows, which "
    "flatters it: the more arms, the more. `sp2dpo evaluate` and `sp2dpo sweep` choose on one half "
    "and compare on the other."
)


@dataclass(frozen=True, slots=True)
class Student:
    """cells: arm -> column -> value, BASE among the arms where it was evaluated."""

    name: str
    panel: Panel
    cells: Mapping[str, Cells]

    def best(self, arms: Sequence[str], column: str) -> str | None:
        """The arm with the highest value, the first of equal ones; None where none has one."""
        there = [arm for arm in arms if column in self.cells.get(arm, {})]
        return max(there, key=lambda arm: self.cells[arm][column], default=None)

    @property
    def plain(self) -> list[str]:
        return [arm for arm in self.cells if arm != BASE and parse_arm(arm).is_global]

    @property
    def semantic(self) -> list[str]:
        """The arms of the paper's own method."""
        lines = lines_of([arm for arm in self.cells if arm != BASE], self.panel)
        return [line.arm for line in lines if line.group == "SP2DPO" and line.arm]


def methods(student: Student, column: str) -> dict[str, str | None]:
    """Table 2: each method's arm of this student; of several the best by `column`."""
    there = student.cells
    return {
        "Base": BASE if BASE in there else None,
        "Rand-beta": CONTROL if CONTROL in there else None,
        "DPO, best beta": student.best(student.plain, column),
        "SP2DPO, JMAMP": DEFAULT if DEFAULT in there else None,
        "SP2DPO, best": student.best(student.semantic, column),
    }


def gains(student: Student, column: str) -> dict[str, float]:
    """Figure 2: what each method has more than the tuned global beta, in points of `column`."""
    rows = methods(student, column)
    tuned = rows.pop("DPO, best beta")
    if tuned is None:
        return {}
    level = student.cells[tuned][column]
    return {
        name: student.cells[arm][column] - level
        for name, arm in rows.items()
        if arm is not None and name != "Base" and column in student.cells[arm]
    }


def table_2(students: Sequence[Student], columns: Sequence[str]) -> str:
    """Method by student; the best by columns[0]."""
    chosen = {student.name: methods(student, columns[0]) for student in students}
    names = list(next(iter(chosen.values())))
    lines = [Line(name, _named(name, chosen), name) for name in names]
    cells = {
        name: {
            _column(students, student, column): student.cells[arm][column]
            for student in students
            if (arm := chosen[student.name][name]) is not None
            for column in columns
            if column in student.cells[arm]
        }
        for name in names
    }
    return markdown(lines, _wide(students, columns), cells)


def _named(method: str, chosen: Mapping[str, Mapping[str, str | None]]) -> str:
    """Which arm stands there, for each student where they differ."""
    arms = {student: rows[method] for student, rows in chosen.items()}
    different = set(arms.values())
    if len(different) == 1:
        return different.pop() or MISSING
    return ", ".join(f"{student}: {arm or MISSING}" for student, arm in arms.items())


def table_3(students: Sequence[Student], column: str) -> str:
    """Best single-call schedule of each teacher, its variant in brackets; the best of a row is
    bold."""
    teachers = list(dict.fromkeys(name for student in students for name in student.panel.teachers))
    rows = [f"| Student | {' | '.join(teachers)} |", "|---" * (1 + len(teachers)) + "|"]
    for student in students:
        printed = []
        for teacher in teachers:
            arms = {f"sa-{teacher}-{variant}": variant for variant in student.panel.variants}
            best = student.best(list(arms), column)
            value = None if best is None else f"{student.cells[best][column]:.2f}"
            printed.append((value, arms.get(best or "")))
        top = max((float(value) for value, _ in printed if value), default=None)
        told = [
            MISSING if value is None
            else f"{f'**{value}**' if float(value) == top else value} ({variant})"
            for value, variant in printed
        ]  # fmt: skip
        rows.append(f"| {student.name} | {' | '.join(told)} |")
    return "\n".join(rows) + "\n"


def table_16(students: Sequence[Student], columns: Sequence[str]) -> str:
    """Every arm of every student."""
    panel = Panel(
        tuple(dict.fromkeys(name for student in students for name in student.panel.teachers)),
        tuple(dict.fromkeys(name for student in students for name in student.panel.variants)),
    )
    arms = list(dict.fromkeys(arm for student in students for arm in student.cells))
    cells = {
        arm: {
            _column(students, student, column): value
            for student in students
            for column, value in student.cells.get(arm, {}).items()
        }
        for arm in arms
    }
    lines = lines_of([arm for arm in arms if arm != BASE], panel, base=BASE in arms)
    return markdown(lines, _wide(students, columns), cells)


def _wide(students: Sequence[Student], columns: Sequence[str]) -> list[str]:
    return [_column(students, student, column) for student in students for column in columns]


def _column(students: Sequence[Student], student: Student, column: str) -> str:
    return column if len(students) == 1 else f"{student.name} {column}"


def document(students: Sequence[Student], columns: Sequence[str]) -> str:
    """All tables as one Markdown text."""
    column = columns[0]
    parts = [
        "# Students side by side",
        f"Compared by {column}, higher is better.",
        "## Methods (the form of Table 2)",
        table_2(students, columns),
        CAUTION,
        "## Gains on the tuned global beta (the form of Figure 2)",
        _gain_lines(students, column),
        "## One teacher, one prompt (the form of Table 3)",
        table_3(students, column),
        "## Every arm (the form of Table 16)",
        table_16(students, columns),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _gain_lines(students: Sequence[Student], column: str) -> str:
    lines = []
    for student in students:
        told = [f"{name} {gain:+.2f}" for name, gain in gains(student, column).items()]
        lines.append(f"- {student.name}: {', '.join(told) or 'no global beta was trained'}")
    return "\n".join(lines)
