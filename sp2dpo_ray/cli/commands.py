"""The commands.

In: `sp2dpo STAGE CONFIG [--set k=v ...] [--json]`, or a command on a published folder. Out:
progress and messages on stderr, with `--json` the summary as the last line of stdout. Exit codes:
see `guard.py`.
"""

from __future__ import annotations

import contextlib
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from sp2dpo_ray import __version__
from sp2dpo_ray.cli.folders import checklist, clean, pull, push, status, verify
from sp2dpo_ray.cli.guard import guarded
from sp2dpo_ray.cli.init import init
from sp2dpo_ray.cli.jobs import cluster_size, jobs, submit
from sp2dpo_ray.cli.options import MAY_ASK, AsJson, ConfigFile, Debug, Offline, Overrides, Quiet
from sp2dpo_ray.cli.show import show, show_diff, tell
from sp2dpo_ray.console import about, hushed, say
from sp2dpo_ray.errors import ConfigError
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

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="DPO with a temperature for each pair: teachers describe preference pairs, their answers "
    "become a schedule of betas, students are trained with it and compared.\n\n"
    "See it work, without keys and GPUs, in a clone of the project:  "
    "[bold]sp2dpo run configs/demo.yaml[/bold]\n\n"
    "Your own pairs:  [bold]sp2dpo init[/bold], then doctor, prepare, plan and run with the file "
    "that it wrote.",
    epilog="Everything can be interrupted: the same command goes on, and what was paid is never "
    "asked again. Any key can be changed for one command: --set train.arm=dpo:0.3. Exit codes: 0 "
    "done, 2 configuration wrong, 3 data wrong, 4 stopped and resumable, 5 training failed.",
)
BEGIN, SCHEDULE, TRAIN, JUDGE, LOOK, CLUSTER = (
    "Begin here", "From pairs to a schedule", "Training", "Judging and telling", "Run folders",
    "Clusters",
)  # fmt: skip
PANELS = {
    "run": BEGIN, "doctor": BEGIN, "plan": BEGIN,
    **dict.fromkeys(("student", "reference", "train", "sweep"), TRAIN),
    **dict.fromkeys(("generate", "evaluate", "report"), JUDGE),
}  # fmt: skip
# what most people do after a stage
NEXT = {
    "doctor": "prepare", "prepare": "plan", "plan": "annotate", "annotate": "schedule",
    "schedule": "sweep", "student": "annotate", "reference": "sweep", "train": "report",
    "sweep": "report", "generate": "evaluate", "evaluate": "report",
}  # fmt: skip


def _command(stage: Stage) -> None:
    """A command of a stage; those that may ask teachers can be told not to."""

    def asking(
        config: ConfigFile,
        set_: Overrides = None,
        as_json: AsJson = False,
        quiet: Quiet = False,
        debug: Debug = False,
        offline: Offline = False,
    ) -> None:
        work = partial(_work, config, set_, as_json, stage, quiet=quiet, offline=offline)
        raise typer.Exit(guarded(work, debug))

    def command(
        config: ConfigFile,
        set_: Overrides = None,
        as_json: AsJson = False,
        quiet: Quiet = False,
        debug: Debug = False,
    ) -> None:
        asking(config, set_, as_json, quiet, debug)

    _add(stage)(asking if stage.name in MAY_ASK else command)


def _add(stage: Stage) -> Any:
    panel = PANELS.get(stage.name, SCHEDULE)
    return app.command(stage.name, help=stage.title, rich_help_panel=panel)


def _work(
    config: str,
    overrides: list[str] | None,
    as_json: bool,
    stage: Stage,
    *,
    quiet: bool = False,
    offline: bool = False,
    **more: Any,
) -> None:
    from sp2dpo_ray.config import load_config
    from sp2dpo_ray.run import Run

    run = Run(load_config(config, tuple(overrides or ())), offline)
    about(run=run.config.run.name, lambda_id=run.config.lambda_id)
    with contextlib.ExitStack() as stack:
        if quiet:
            stack.enter_context(hushed())
        if stage.writes:
            stack.enter_context(run.locked())
            run.fetch()
        else:
            run.fetch_if_free()
        if stage.needs_ray:
            stack.enter_context(ray_session(run.config.cluster.address, stage.extra))
            check_shared_folder(run, stage)
        if stage.writes:
            run.write_lambda()
        summary = stage(run, **more)
    tell(summary, as_json, show)
    same = shlex.join([config, *(word for one in overrides or () for word in ("--set", one))])
    if problems := summary.get("problems"):  # so that a script stops here, too
        listed = "\n".join(f"- {problem}" for problem in problems)
        again = f"then again: sp2dpo {stage.name} {same}"
        raise ConfigError(f"{len(problems)} to mend:\n{listed}\n{again}")
    if not as_json and not quiet and stage.name in NEXT:
        say(f"next: sp2dpo {NEXT[stage.name]} {same}")


def schedule(
    config: Annotated[
        str | None, typer.Argument(help="YAML file with the whole configuration.")
    ] = None,
    set_: Overrides = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
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
            from sp2dpo_ray.core.schedule.diff import diff as diff_of

            tell(diff_of(*diff), as_json, show_diff)
        elif config is not None:
            _work(config, set_, as_json, STAGES["schedule"], quiet=quiet)

    raise typer.Exit(guarded(work, debug))


def audit(
    config: ConfigFile,
    set_: Overrides = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
    import_: Annotated[
        Path | None,
        typer.Option("--import", help="Read the filled-in sheet and measure agreement with it."),
    ] = None,
) -> None:
    work = (
        partial(_work, config, set_, as_json, STAGES["audit"], quiet=quiet)
        if import_ is None
        else partial(_work, config, set_, as_json, IMPORT, quiet=quiet, sheet=import_)
    )
    raise typer.Exit(guarded(work, debug))


app.command("init", rich_help_panel=BEGIN)(init)
SPECIAL = {"schedule": schedule, "audit": audit}
for _stage in (*STAGES.values(), WHOLE_RUN):
    if _stage.name in SPECIAL:
        _add(_stage)(SPECIAL[_stage.name])
    else:
        _command(_stage)


app.command("submit", rich_help_panel=CLUSTER)(submit)
app.command(CLUSTER_SIZE.name, help=CLUSTER_SIZE.title, rich_help_panel=CLUSTER)(cluster_size)
app.add_typer(jobs, name="jobs", rich_help_panel=CLUSTER)


@app.command(help=LAB.title, rich_help_panel=TRAIN)
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
        with ray_session(address, LAB.extra):
            summary = LAB.work(
                folder, tuple(world or ()), tuple(arm or ()), seeds, tuple(set_ or ())
            )
        tell(summary, as_json, show)

    raise typer.Exit(guarded(work, debug))


@app.command(help=TABLES.title, rich_help_panel=JUDGE)
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
    app.command(rich_help_panel=LOOK)(_command_on_folder)


@app.command(rich_help_panel=LOOK)
def version() -> None:
    """Print the version."""
    print(__version__)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the console script and of the files in `jobs/`."""
    app(arguments if arguments is not None else sys.argv[1:], prog_name="sp2dpo")
