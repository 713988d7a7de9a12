"""Files of JSON lines that grow while a process lives, and that a kill or a full disk may cut.

In: rows. Out: the same. Invariant: a last line that was cut counts as not written, and nothing that
is appended later is joined to it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def read_json_lines(path: Path) -> list[Any]:
    """The whole rows of a file, in order; none where there is no file.

    Raises ValueError for a line other than the last that is no JSON.
    """
    if not path.exists():
        return []
    lines = [line for line in path.read_bytes().split(b"\n") if line.strip()]
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            if number < len(lines):
                raise ValueError(f"{path}: line {number} is no JSON: {error}") from error
    return rows


def append_json_line(path: Path, row: Any) -> None:
    """Append one row, behind a line break where the last line was cut."""
    line = json.dumps(row, sort_keys=True).encode("utf-8") + b"\n"
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else b"\n" + line
        file.write(line)
