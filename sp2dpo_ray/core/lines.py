"""Files of JSON lines that grow while a process lives, and that a kill or a full disk may cut.

In: rows. Out: the same. Invariant: a last line that was cut counts as not written, and nothing that
is appended later is joined to it.
"""

from __future__ import annotations

import json
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
    """Append one row, in the place of a last line that was cut. One process writes at a time."""
    line = json.dumps(row, sort_keys=True).encode("utf-8") + b"\n"
    with path.open("ab+") as file:
        file.seek(0)
        whole, newline, tail = file.read().rpartition(b"\n")
        if tail and is_json(tail):  # only its line break is missing
            line = b"\n" + line
        elif tail:
            file.truncate(len(whole + newline))
        file.write(line)


def is_json(text: str | bytes) -> bool:
    """Whether a text is one JSON value."""
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
