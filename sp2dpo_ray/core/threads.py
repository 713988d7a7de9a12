"""Work on a thread of its own, so that an interrupt stays an interrupt.

In: a function. Out: what it returns, or raises. Ray Train and Ray Tune take Ctrl-C for themselves
where they run on the main thread, and end the process with exit code 0. Invariant: whatever the
work raises is raised here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


def off_main_thread(
    work: Callable[[], Result], meanwhile: Callable[[], None] = lambda: None, every_s: float = 0.5
) -> Result:
    """meanwhile: called every so many seconds, and once after the end."""
    found: list[Result] = []
    failures: list[BaseException] = []

    def carried() -> None:
        try:
            found.append(work())
        except BaseException as error:  # to the caller's thread, whatever it is
            failures.append(error)

    thread = threading.Thread(target=carried, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(every_s)
        meanwhile()
    if failures:
        raise failures[0]
    return found[0]
