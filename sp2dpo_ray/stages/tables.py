"""The tables of several runs: students side by side, as the paper shows them.

In: run folders whose report is written. Out: a folder with Markdown, JSON and a figure. Invariant:
runs are shown by what they published, and only by figures that all of them have.
"""

from __future__ import annotations

import json
from pathlib import Path

from sp2dpo_ray.core.artifact import open_artifact, read_manifest, write_atomically
from sp2dpo_ray.core.files import ARMS
from sp2dpo_ray.core.schedule.grid import Panel
from sp2dpo_ray.errors import DataError
from sp2dpo_ray.report.gains_figure import draw
from sp2dpo_ray.report.paper_tables import Student, document, gains
from sp2dpo_ray.run import Summary

TEXT, FIGURE, VALUES = "tables.md", "gains.svg", "gains.json"


def tables(runs: list[Path], out: Path) -> Summary:
    """Read what each run reports, and write all tables into `out`."""
    students, shared = [], None
    for path in runs:
        student, columns = _read(path)
        students.append(student)
        shared = [name for name in shared or columns if name in columns]
    if not shared:
        raise DataError(f"the runs share no figure: {', '.join(str(path) for path in runs)}")
    names = [student.name for student in students]
    if len(set(names)) < len(names):
        raise DataError(f"two runs have one name: {names}; give them others with run.name")
    text = document(students, shared)
    moved = {student.name: gains(student, shared[0]) for student in students}
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / TEXT, text)
    write_atomically(out / VALUES, json.dumps({"column": shared[0], "gains": moved}) + "\n")
    draw(moved, shared[0], out / FIGURE)
    return {"students": names, "columns": shared, "gains": moved, "folder": str(out), "text": text}


def _read(path: Path) -> tuple[Student, list[str]]:
    folder = path / "report"
    if read_manifest(folder) is None:
        raise DataError(f"{path}: holds no report; run: sp2dpo report CONFIG")
    open_artifact(folder)  # whole, and as it was published
    record = json.loads((folder / ARMS).read_text(encoding="utf-8"))
    panel = Panel(*(tuple(record["panel"][name]) for name in ("teachers", "variants")))
    return Student(record["name"], panel, record["cells"]), record["columns"]
