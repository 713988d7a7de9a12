"""What a person sees while a stage runs: a bar on stderr, or plain lines where it is no terminal.

In: a title, a total, steps done. Out: text on stderr; stdout stays free for results. Invariant:
nothing here decides anything, and a quiet console changes no result.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
stderr = Console(stderr=True, highlight=False)
LINES_EVERY_S = 10.0


def say(text: str) -> None:
    """One line on stderr."""
    stderr.print(text, markup=False, soft_wrap=True)


@contextmanager
def bar(title: str, total: int) -> Iterator[Advance]:
    """A progress bar; call the yielded function with (steps done since, note)."""
    if stderr.is_terminal:
        yield from _drawn(title, total)
    else:
        yield from _printed(title, total)


def _drawn(title: str, total: int) -> Iterator[Advance]:
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
        task = progress.add_task(title, total=total, note="")
        yield lambda steps, note: progress.update(task, advance=steps, note=note)


def _printed(title: str, total: int) -> Iterator[Advance]:
    start = last = time.monotonic()
    done = 0

    def advance(steps: int, note: str) -> None:
        nonlocal done, last
        done += steps
        now = time.monotonic()
        if now - last >= LINES_EVERY_S:
            last = now
            left = (now - start) / max(done, 1) * (total - done)
            say(f"{title}: {done:,}/{total:,}, {left:.0f} s left  {note}")

    yield advance
