"""The command line: one command a stage.

In: `sp2dpo STAGE CONFIG [--set k=v ...] [--json]`. Out: progress and messages on stderr, with
`--json` the summary as the last line of stdout. Exit codes: 0 done; 2 the configuration or a flag
is wrong; 3 the data is wrong; 4 stopped and resumable; 5 training failed; 1 a fault of the program.
"""

from __future__ import annotations

import contextlib
import errno
import json
import signal
import sys
import traceback
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import typer
from rich.box import SIMPLE
from rich.table import Table

from sp2dpo_ray import __version__
from sp2dpo_ray.config import load_config
from sp2dpo_ray.console import say, stderr
from sp2dpo_ray.errors import Sp2dpoError
from sp2dpo_ray.run import Run, Summary
from sp2dpo_ray.stages import STAGES, WHOLE_RUN, Stage, brief, ray_session

FAULT, STOPPED = 1, 4
GO_ON = "What was finished is kept; run the same command again to go on"
MAY_ASK = ("annotate", "run")
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Per-pair temperature DPO: annotate preference pairs, publish a beta schedule, train, "
    "compare. Begin with: sp2dpo run configs/demo.yaml",
)


ConfigFile = Annotated[str, typer.Argument(help="YAML file with the whole configuration.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one key; may be repeated."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the summary as one JSON line.")]
Debug = Annotated[bool, typer.Option(help="Show tracebacks.")]
Offline = Annotated[
    bool, typer.Option("--offline", help="Ask no teacher: what is on record must do.")
]


def _command(stage: Stage) -> None:
    """A command of a stage; those that may ask teachers can be told not to."""

    def asking(
        config: ConfigFile,
        set_: Overrides = None,
        as_json: AsJson = False,
        debug: Debug = False,
        offline: Offline = False,
    ) -> None:
        work = partial(_work, config, set_, as_json, stage, offline=offline)
        raise typer.Exit(_guarded(work, debug))

    def command(
        config: ConfigFile, set_: Overrides = None, as_json: AsJson = False, debug: Debug = False
    ) -> None:
        asking(config, set_, as_json, debug)

    app.command(stage.name, help=stage.title)(asking if stage.name in MAY_ASK else command)


def _work(
    config: str, overrides: list[str] | None, as_json: bool, stage: Stage, *, offline: bool
) -> None:
    run = Run(load_config(config, tuple(overrides or ())), offline)
    with contextlib.ExitStack() as stack:
        if stage.writes:
            stack.enter_context(run.locked())
        if stage.needs_ray:
            stack.enter_context(ray_session(run.config))
        if stage.writes:
            run.write_lambda()
        summary = stage(run)
    if as_json:
        print(json.dumps(summary, allow_nan=False), flush=True)
    else:
        _show(summary)


def _show(summary: Summary) -> None:
    """The summary for a person: the arms as a table where there are some."""
    if "arms" in summary.get("report", {}):
        _show_arms(summary["report"]["arms"])
        say(f"\npage: {summary['report']['page']}")
    elif "calls_recorded" in summary:
        _show_plan(summary)
    elif "page" in summary:
        say(f"page: {summary['page']}")
    else:
        say(brief(summary))


def _show_arms(arms: list[dict[str, Any]]) -> None:
    pairs = arms[0]["pairs"] if arms else 0
    table = Table(
        title=f"{pairs} held-out pairs, 95 % paired intervals", title_justify="left", box=SIMPLE
    )
    table.add_column("arm", no_wrap=True)
    for name in ("accuracy", "margin", "less baseline"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for row in arms:
        table.add_row(
            row["arm"],
            _interval(row["accuracy"], ".2f"),
            f"{row['margin']['mean']:+.2f}",
            _interval(row["gain"], "+.2f") if row["gain"] else "",
            row["verdict"],
        )
    stderr.print(table)


def _show_plan(summary: Summary) -> None:
    table = Table(title="what annotation would still ask", title_justify="left", box=SIMPLE)
    table.add_column("teacher", no_wrap=True)
    for name in ("calls left", "on record", "prompt tokens", "USD", "hours"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, row in (*summary["teachers"].items(), ("all", summary)):
        cost = row["cost_usd"]
        table.add_row(
            name,
            f"{row['calls'] - row['calls_recorded']:,}",
            f"{row['calls_recorded']:,}",
            f"{row['prompt_tokens']:,}",
            "no price" if cost is None else f"{cost:,.2f}",
            f"{row['hours']:,.1f}",
        )
    stderr.print(table)
    if summary["spent_usd"]:
        say(f"spent so far, cut-off attempts at their worst: ${summary['spent_usd']:,.2f}")
    if summary["budget_usd"] is not None:
        say(f"budget.usd: ${summary['budget_usd']:,.2f}")


def _interval(value: dict[str, float], form: str) -> str:
    return f"{value['mean']:{form}} [{value['low']:{form}}, {value['high']:{form}}]"


def _guarded(work: Callable[[], None], debug: bool) -> int:
    """Run, and turn what went wrong into one message and an exit code."""
    # `ray job stop` and schedulers send SIGTERM: leave as on Ctrl-C
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        work()
    except KeyboardInterrupt:
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


for _stage in (*STAGES.values(), WHOLE_RUN):
    _command(_stage)


@app.command()
def version() -> None:
    """Print the version."""
    print(__version__)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the console script and of the files in `jobs/`."""
    app(arguments if arguments is not None else sys.argv[1:], prog_name="sp2dpo")
