"""Commands on a folder that stages have written: is it whole, what does it hold, how far is it.

In: a published artifact or a run folder. Out: lines for a person, or one JSON line. Invariant: none
needs the configuration file, and only `clean --apply` changes anything.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from sp2dpo_ray.cli.guard import guarded
from sp2dpo_ray.cli.options import AsJson, Debug, Folder, RunFolder
from sp2dpo_ray.cli.show import show, show_checklist, show_cleaned, show_status, tell
from sp2dpo_ray.console import say


def verify(path: Folder, as_json: AsJson = False, debug: Debug = False) -> None:
    """Check a published artifact, or a whole run: hashes, columns, ranges, every beta again."""

    def work() -> None:
        from sp2dpo_ray.core.schedule.verify import verify as checks_of

        lines = []
        for line in checks_of(path):
            lines.append(line.strip())
            say(line)
        tell({"checks": lines}, as_json, lambda _: say("nothing is wrong"))

    raise typer.Exit(guarded(work, debug))


def checklist(path: Folder, as_json: AsJson = False, debug: Debug = False) -> None:
    """The reproducibility checklist of the paper's appendix J.4, held against a run."""

    def work() -> None:
        from sp2dpo_ray.core.checklist import checklist as checklist_of

        lines = checklist_of(path)
        summary = {
            "lines": [asdict(line) for line in lines],
            "held": sum(line.where is not None for line in lines),
            "missing": sum(line.where is None for line in lines),
        }
        tell(summary, as_json, lambda _: show_checklist(lines))

    raise typer.Exit(guarded(work, debug))


def status(run: RunFolder, as_json: AsJson = False, debug: Debug = False) -> None:
    """How far a run is: artifacts, calls, money, trainings; from its folder alone."""

    def work() -> None:
        from sp2dpo_ray.stages.status import status as status_of

        tell(status_of(run), as_json, show_status)

    raise typer.Exit(guarded(work, debug))


def clean(
    run: RunFolder,
    stale: Annotated[
        bool, typer.Option("--stale", help="Also artifacts whose inputs have changed.")
    ] = False,
    apply: Annotated[bool, typer.Option("--apply", help="Remove it; else only list.")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """List, and with --apply remove, what of a run folder nobody will read again."""

    def work() -> None:
        from sp2dpo_ray.stages.clean import clean as cleaned

        tell(cleaned(run, stale=stale, apply=apply), as_json, show_cleaned)

    raise typer.Exit(guarded(work, debug))


def push(
    run: RunFolder,
    to: Annotated[str, typer.Argument(help="s3://..., gs://... or a folder.")],
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Carry a run's artifacts and journal to an object store; what is there stays as it is."""

    def work() -> None:
        from sp2dpo_ray.stages.transfer import push as pushed

        tell(pushed(run, to), as_json, show)

    raise typer.Exit(guarded(work, debug))


def pull(
    where: Annotated[str, typer.Argument(help="s3://..., gs://... or a folder.")],
    run: RunFolder,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Carry a pushed run back, each artifact held against its manifest before it counts."""

    def work() -> None:
        from sp2dpo_ray.stages.transfer import pull as pulled

        tell(pulled(where, run), as_json, show)

    raise typer.Exit(guarded(work, debug))
