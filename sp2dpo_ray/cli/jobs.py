"""Commands on a cluster: a stage handed in as a job, and the jobs that are there.

In: what the stage's own command takes, and where the cluster is. Out: the job's log on stderr, and
the exit code of the stage. Invariant: the configuration is read here first, so that a mistake costs
no job.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE
from rich.table import Table

from sp2dpo_ray import console
from sp2dpo_ray.cli.guard import guarded
from sp2dpo_ray.cli.options import (
    MAY_ASK,
    Address,
    AllowOpen,
    AsJson,
    ConfigFile,
    Debug,
    Offline,
    Overrides,
)
from sp2dpo_ray.cli.show import show_sizes, tell
from sp2dpo_ray.console import say, stderr
from sp2dpo_ray.errors import ConfigError, Stopped
from sp2dpo_ray.stages import CLUSTER_SIZE, STAGES, WHOLE_RUN, missing

if TYPE_CHECKING:
    from sp2dpo_ray.run import Summary

jobs = typer.Typer(no_args_is_help=True, help="Jobs of a cluster: list, follow, stop.")


def submit(
    stage: Annotated[str, typer.Argument(help="A stage, or run for all of them.")],
    config: ConfigFile,
    set_: Overrides = None,
    address: Address = None,
    working_dir: Annotated[
        Path, typer.Option(help="Goes to the cluster, secrets and runs left out.")
    ] = Path("."),
    pip: Annotated[
        Path | None, typer.Option(help="Requirements that the nodes' image lacks.")
    ] = None,
    cpus: Annotated[
        float, typer.Option(min=0, help="CPUs of the command itself; 0: it runs on the head.")
    ] = 0,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs of the command itself.")] = 0,
    offline: Offline = False,
    detach: Annotated[bool, typer.Option("--detach", help="Hand in, and do not wait.")] = False,
    allow_open: AllowOpen = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Do a stage on a cluster, as a job: `sp2dpo submit train mine.yaml --address http://...`."""

    def work() -> None:
        from sp2dpo_ray.cluster.jobs import follow, job_of, submit_job
        from sp2dpo_ray.config import load_config

        if stage not in {*STAGES, WHOLE_RUN.name}:
            raise ConfigError(f"{stage!r} is no stage; stages: {[*STAGES, WHOLE_RUN.name]}")
        if offline and stage not in MAY_ASK:
            raise ConfigError(f"--offline is for {MAY_ASK}: {stage} asks nobody")
        overrides = tuple(set_ or ())
        more = (*(["--offline"] if offline else []), *(["--json"] if as_json else []))
        job = job_of(
            load_config(config, overrides), Path(config), stage, overrides,
            working_dir=working_dir, pip=pip, more=more, cpus=cpus, gpus=gpus,
        )  # fmt: skip
        client = _client(address, allow_open)
        name, new = submit_job(client, job)
        say(f"{name}: {job.command}" if new else f"{name} does this already, and is followed")
        told: dict[str, Any] = {"job": name, "new": new, "folder": job.folder}
        if not detach:
            told |= _followed(lambda: follow(client, name), name)
        tell(told, as_json, lambda told: _show_job(told, detach))

    raise typer.Exit(guarded(work, debug))


def cluster_size(
    config: ConfigFile,
    cloud: Annotated[str, typer.Option(help="aws, gcp or azure.")] = "aws",
    set_: Overrides = None,
    gpu: Annotated[
        str | None, typer.Option(help="Group to train on; else the smallest that holds an arm.")
    ] = None,
    parameters: Annotated[
        float | None, typer.Option(min=0, help="Of the student, in billions.")
    ] = None,
    within_hours: Annotated[
        float | None, typer.Option(min=0, help="Put arms side by side until the sweep fits.")
    ] = None,
    prices: Annotated[Path | None, typer.Option(help="A machines.yaml of your own.")] = None,
    template: Annotated[
        Path | None, typer.Option(help="Cluster file to size; else cluster/clouds/CLOUD.yaml.")
    ] = None,
    write: Annotated[Path | None, typer.Option(help="Where to write it with its sizes.")] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    def work() -> None:
        from sp2dpo_ray.config import load_config
        from sp2dpo_ray.run import Run

        summary = CLUSTER_SIZE.work(
            Run(load_config(config, tuple(set_ or ()))), cloud=cloud, gpu=gpu,
            parameters=parameters, within_hours=within_hours, prices=prices,
            template=template or Path(f"cluster/clouds/{cloud}.yaml"), write=write,
        )  # fmt: skip
        tell(summary, as_json, show_sizes)

    raise typer.Exit(guarded(work, debug))


@jobs.command("list")
def list_(
    address: Address = None,
    allow_open: AllowOpen = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """The jobs that were handed in with `sp2dpo submit`, the newest first."""

    def work() -> None:
        from sp2dpo_ray.cluster.jobs import list_jobs

        rows = list_jobs(_client(address, allow_open))
        tell({"jobs": rows}, as_json, _show_jobs)

    raise typer.Exit(guarded(work, debug))


@jobs.command("follow")
def follow_(
    job: Annotated[str, typer.Argument(help="Its id, of `sp2dpo jobs list`.")],
    address: Address = None,
    allow_open: AllowOpen = False,
    debug: Debug = False,
) -> None:
    """The log of a job until it ends; ends with the exit code of its stage."""

    def work() -> None:
        from sp2dpo_ray.cluster.jobs import follow

        client = _client(address, allow_open)
        _followed(lambda: follow(client, job), job)

    raise typer.Exit(guarded(work, debug))


@jobs.command("stop")
def stop_(
    job: Annotated[str, typer.Argument(help="Its id, of `sp2dpo jobs list`.")],
    address: Address = None,
    allow_open: AllowOpen = False,
    debug: Debug = False,
) -> None:
    """End a job as Ctrl-C would; what is finished is kept."""

    def work() -> None:
        from sp2dpo_ray.cluster.jobs import stop

        running = stop(_client(address, allow_open), job)
        say(f"{job} was told to stop" if running else f"{job} had ended before")

    raise typer.Exit(guarded(work, debug))


def _show_job(told: Summary, detached: bool) -> None:
    say(f"artifacts: {told['folder']}, as the cluster sees it")
    if detached:
        say(f"follow it: sp2dpo jobs follow {told['job']}\nstop it: sp2dpo jobs stop {told['job']}")


def _show_jobs(told: Summary) -> None:
    if console.AS_JSON:
        for row in told["jobs"]:
            say(json.dumps(row))
        return
    table = Table(box=SIMPLE)
    for name in ("job", "stage", "run", "status", "exit code"):
        table.add_column(name, no_wrap=True)
    for row in told["jobs"]:
        code = "" if row["exit_code"] is None else str(row["exit_code"])
        table.add_row(row["job"], row["stage"], row["run"], row["status"], code)
    stderr.print(table)


def _client(address: str | None, allow_open: bool) -> Any:
    try:
        from sp2dpo_ray.cluster.door import connect

        return connect(address, allow_open=allow_open)
    except ModuleNotFoundError as error:
        raise missing(error, "a cluster's job server", "jobs") from error


def _followed(work: Any, name: str) -> dict[str, Any]:
    try:
        told: dict[str, Any] = work()
        return told
    except KeyboardInterrupt:
        raise Stopped(
            f"no longer followed; job {name} goes on\nfollow it: sp2dpo jobs follow {name}\n"
            f"stop it: sp2dpo jobs stop {name}"
        ) from None
