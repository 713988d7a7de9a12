"""What a person sees while a stage runs: a bar on stderr, or plain lines where it is no terminal.

In: a title, a total, steps done. Out: text on stderr; stdout stays free for results. With
SP2DPO_LOG=json each line is a JSON object with the time, the run, its lambda_id and the stage.
Invariant: nothing here decides anything, and a quiet console changes no result.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Advance = Callable[[int, str], None]
LOG_WIDTH = 120
AdvanceOne = Callable[[str, int, str], None]
stderr = Console(stderr=True, highlight=False)
if not stderr.is_terminal:
    stderr = Console(stderr=True, highlight=False, width=LOG_WIDTH)  # a log has no narrow edge
LINES_EVERY_S = 10.0
AS_JSON = os.environ.get("SP2DPO_LOG") == "json"
_about: dict[str, str] = {}
_hushed = False


def about(**fields: str) -> None:
    """What the JSON lines of this process are about from now on: run, lambda_id, stage."""
    _about.update(fields)


@contextmanager
def hushed() -> Iterator[None]:
    """Say and draw nothing; what ends a command, its summary or an error, is told after it."""
    global _hushed
    _hushed = True
    try:
        yield
    finally:
        _hushed = False


def say(text: str, **more: Any) -> None:
    """One line on stderr; more: fields that only a JSON line has room for."""
    if _hushed:
        return
    if AS_JSON:
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **_about}
        print(json.dumps(line | {"message": text, **more}), file=sys.stderr, flush=True)
    else:
        stderr.print(text, markup=False, soft_wrap=True)


@contextmanager
def without_lines(words: str) -> Iterator[None]:
    """Keep lines with these words off stderr, also those that a library's C++ writes past Python;
    the others are said when the block ends."""
    sys.stderr.flush()
    shown = os.dup(2)
    with tempfile.TemporaryFile() as aside:
        os.dup2(aside.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(shown, 2)
            os.close(shown)
            aside.seek(0)
            for line in aside.read().decode(errors="replace").splitlines():
                if words not in line:
                    say(line)


@contextmanager
def bar(title: str, total: int) -> Iterator[Advance]:
    """A progress bar; call the yielded function with (steps done since, note)."""
    with bars(title, {"": total}) as advance:
        yield lambda steps, note: advance("", steps, note)


@contextmanager
def bars(title: str, totals: dict[str, int]) -> Iterator[AdvanceOne]:
    """A bar for each name; call the yielded function with (name, steps done since, note)."""
    if stderr.is_terminal and not AS_JSON and not _hushed:
        yield from _drawn(title, totals)
    else:
        yield from _printed(title, totals)


def _drawn(title: str, totals: dict[str, int]) -> Iterator[AdvanceOne]:
    columns = (
        TextColumn("{task.description:<22}", markup=False),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=stderr) as progress:
        tasks = {
            name: progress.add_task(f"{title} {name}".strip(), total=total, note="")
            for name, total in totals.items()
        }
        yield lambda name, steps, note: progress.update(tasks[name], advance=steps, note=note)


def _printed(title: str, totals: dict[str, int]) -> Iterator[AdvanceOne]:
    last = time.monotonic()
    done = dict.fromkeys(totals, 0)
    notes = dict.fromkeys(totals, "")
    first: dict[str, tuple[float, int]] = {}  # what went before it was start-up, and tells no rate

    def left(name: str, now: float) -> str:
        began, count = first.get(name, (now, done[name]))
        if done[name] == count:
            return ""
        seconds = (now - began) / (done[name] - count) * (totals[name] - done[name])
        return f", {seconds:.0f} s left"

    def advance(name: str, steps: int, note: str) -> None:
        nonlocal last
        done[name] += steps
        notes[name] = note
        now = time.monotonic()
        if steps:
            first.setdefault(name, (now, done[name]))
        if now - last < LINES_EVERY_S:
            return
        last = now
        for each, total in totals.items():
            head = f"{title} {each}".strip()
            say(f"{head}: {done[each]:,}/{total:,}{left(each, now)}  {notes[each]}".rstrip())

    yield advance
