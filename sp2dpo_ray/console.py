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
LOG_WIDTH = 120
AdvanceOne = Callable[[str, int, str], None]
stderr = Console(stderr=True, highlight=False)
if not stderr.is_terminal:
    stderr = Console(stderr=True, highlight=False, width=LOG_WIDTH)  # a log has no narrow edge
LINES_EVERY_S = 10.0


def say(text: str) -> None:
    """One line on stderr."""
    stderr.print(text, markup=False, soft_wrap=True)


@contextmanager
def bar(title: str, total: int) -> Iterator[Advance]:
    """A progress bar; call the yielded function with (steps done since, note)."""
    with bars(title, {"": total}) as advance:
        yield lambda steps, note: advance("", steps, note)


@contextmanager
def bars(title: str, totals: dict[str, int]) -> Iterator[AdvanceOne]:
    """A bar for each name; call the yielded function with (name, steps done since, note)."""
    if stderr.is_terminal:
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
    start = last = time.monotonic()
    done = dict.fromkeys(totals, 0)
    notes = dict.fromkeys(totals, "")

    def advance(name: str, steps: int, note: str) -> None:
        nonlocal last
        done[name] += steps
        notes[name] = note
        now = time.monotonic()
        if now - last < LINES_EVERY_S:
            return
        last = now
        for each, total in totals.items():
            left = (now - start) / max(done[each], 1) * (total - done[each])
            head = f"{title} {each}".strip()
            say(f"{head}: {done[each]:,}/{total:,}, {left:.0f} s left  {notes[each]}")

    yield advance
