"""Exit codes: what went wrong becomes one message and a number.

In: the work of a command. Out: 0 done; 2 the configuration or a flag is wrong; 3 the data is wrong;
4 stopped and resumable; 5 training failed; 1 a fault of the program. Invariant: no traceback unless
it was asked for.
"""

from __future__ import annotations

import signal
import traceback
from collections.abc import Callable

import typer

from sp2dpo_ray.console import say
from sp2dpo_ray.errors import DISK_FULL, Sp2dpoError

FAULT, STOPPED = 1, 4
GO_ON = "What was finished is kept; run the same command again to go on"


def guarded(work: Callable[[], None], debug: bool) -> int:
    """Run, and turn what went wrong into one message and an exit code."""
    # `ray job stop` and schedulers send SIGTERM: leave as on Ctrl-C
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        work()
    except (KeyboardInterrupt, typer.Abort):  # Abort: Ctrl-C or Ctrl-D at a question
        return _report("interrupted. " + GO_ON, STOPPED, debug)
    except Sp2dpoError as error:
        return _report(str(error), error.exit_code, debug)
    except OSError as error:
        if error.errno in DISK_FULL:
            return _report(f"no disk space left: {error}. Make room. {GO_ON}", STOPPED, debug)
        return _report(f"{type(error).__name__}: {error}{_hint(debug)}", FAULT, debug)
    except Exception as error:
        return _report(f"unexpected {type(error).__name__}: {error}{_hint(debug)}", FAULT, debug)
    return 0


def _hint(debug: bool) -> str:
    return "" if debug else "\n(--debug shows where)"


def _report(message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    say(f"sp2dpo: {message}")
    return code
