"""The commands.

In: `sp2dpo STAGE CONFIG [--set k=v ...] [--json]`, or a command on a published folder. Out:
progress and messages on stderr, with `--json` the summary as the last line of stdout. Exit codes:
see `guard.py`.
"""

from __future__ import annotations

import contextlib
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from sp2dpo_ray import __version__
from sp2dpo_ray.cli.folders import checklist, clean, pull, push, status, verify
from sp2dpo_ray.cli.guard import guarded
from sp2dpo_ray.cli.jobs import cluster_size, jobs, submit
from sp2dpo_ray.cli.options import AsJson, ConfigFile, Debug, Offline, Overrides
from sp2dpo_ray.cli.show import show, show_diff, tell
from sp2dpo_ray.config import load_config
from sp2dpo_ray.console import about, say
from sp2dpo_ray.core.schedule.diff import diff as diff_of
from sp2dpo_ray.errors import ConfigError
from sp2dpo_ray.run import Run
from sp2dpo_ray.stages import (
    CLUSTER_SIZE,
    IMPORT,
    LAB,
    STAGES,
    TABLES,
    WHOLE_RUN,
    Stage,
    check_shared_folder,
    ray_session,
)

MAY_ASK = ("annotate", "evaluate", "run")

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Per-pair temperature DPO: annotate preference pairs, publish a beta schedule, train, "
    "compare. Begin with: sp2dpo run configs/demo.yaml",
)


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
        raise typer.Exit(guarded(work, debug))

    def command(
        config: ConfigFile, set_: Overrides = None, as_json: AsJson = False, debug: Debug = False
    ) -> None:
        asking(config, set_, as_json, debug)

    app.command(stage.name, help=stage.title)(asking if stage.name in MAY_ASK else command)


def _work(
    config: str,
    overrides: list[str] | None,
    as_json: bool,
    stage: Stage,
    *,
    offline: bool = False,
    **more: Any,
) -> None:
    run = Run(load_config(config, tuple(overrides or ())), offline)
    about(run=run.config.run.name, lambda_id=run.config.lambda_id)
    with contextlib.ExitStack() as stack:
        if stage.writes:
            stack.enter_context(run.locked())
        run.fetch()
        if stage.needs_ray:
            stack.enter_context(ray_session(run.config.cluster.address))
            check_shared_folder(run, stage)
        if stage.writes:
            run.write_lambda()
        summary = stage(run, **more)
    tell(summary, as_json, show)


def schedule(
    config: Annotated[
        str | None, typer.Argument(help="YAML file with the whole configuration.")
    ] = None,
    set_: Overrides = None,
    as_json: AsJson = False,
    debug: Debug = False,
    diff: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="A B", help="Compare two published schedules instead."),
    ] = None,
) -> None:
    def work() -> None:
        if (config is None) == (diff is None):
            raise ConfigError("schedule takes a configuration file, or --diff A B")
        if diff is not None:
            tell(diff_of(*diff), as_json, show_diff)
        elif config is not None:
            _work(config, set_, as_json, STAGES["schedule"])

    raise typer.Exit(guarded(work, debug))


def audit(
    config: ConfigFile,
    set_: Overrides = None,
    as_json: AsJson = False,
    debug: Debug = False,
    import_: Annotated[
        Path | None,
        typer.Option("--import", help="Read the filled-in sheet and measure agreement with it."),
    ] = None,
) -> None:
    work = (
        partial(_work, config, set_, as_json, STAGES["audit"])
        if import_ is None
        else partial(_work, config, set_, as_json, IMPORT, sheet=import_)
    )
    raise typer.Exit(guarded(work, debug))


SPECIAL = {"schedule": schedule, "audit": audit}
for _stage in (*STAGES.values(), WHOLE_RUN):
    if _stage.name in SPECIAL:
        app.command(_stage.name, help=_stage.title)(SPECIAL[_stage.name])
    else:
        _command(_stage)


app.command("submit")(submit)
app.command(CLUSTER_SIZE.name, help=CLUSTER_SIZE.title)(cluster_size)
app.add_typer(jobs, name="jobs")


@app.command(help=LAB.title)
def lab(
    folder: Annotated[Path, typer.Option(help="Where table, figure and trials go.")] = Path(
        "runs/lab"
    ),
    world: Annotated[
        list[str] | None, typer.Option(help="One of the worlds; may be repeated. None: all.")
    ] = None,
    arm: Annotated[
        list[str] | None, typer.Option(help="An arm to train; may be repeated. None: the table's.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds.")] = 8,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change every world: noise=0.4"),
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Ray address; none: this machine's own.")
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    def work() -> None:
        with ray_session(address):
            summary = LAB.work(
                folder, tuple(world or ()), tuple(arm or ()), seeds, tuple(set_ or ())
            )
        tell(summary, as_json, show)

    raise typer.Exit(guarded(work, debug))


@app.command(help=TABLES.title)
def tables(
    runs: Annotated[list[Path], typer.Argument(help="Run folders with a report.")],
    out: Annotated[Path, typer.Option(help="Where tables and figure go.")] = Path("runs/tables"),
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    def work() -> None:
        tell(TABLES.work(runs, out), as_json, lambda told: say(f"{told['text']}\n{out}"))

    raise typer.Exit(guarded(work, debug))


for _command_on_folder in (verify, checklist, status, clean, push, pull):
    app.command()(_command_on_folder)


@app.command()
def version() -> None:
    """Print the version."""
    print(__version__)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the console script and of the files in `jobs/`."""
    app(arguments if arguments is not None else sys.argv[1:], prog_name="sp2dpo")
