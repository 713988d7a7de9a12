"""Commands `push` and `pull`: a run folder to an object store or another folder, and back.

In: a run folder and where the other one is. Out: what was carried. Invariant: a run folder that a
command works on is left alone.
"""

from __future__ import annotations

from pathlib import Path

from sp2dpo_ray.console import say
from sp2dpo_ray.core.place import find_place
from sp2dpo_ray.core.transfer import LINES, PROCESS, pull_run, push_run
from sp2dpo_ray.errors import ArtifactError
from sp2dpo_ray.run import Summary, hold


def push(folder: Path, to: str) -> Summary:
    """Carry every finished artifact, the journal and lambda.json to a place."""
    if not (folder / PROCESS).is_file():
        raise ArtifactError(f"{folder}: no run folder (no {PROCESS} in it)")
    place = find_place(to, named="push")
    with hold(folder):
        carried = push_run(folder, place)
    return _told("push", carried) | {"to": str(place)}


def pull(where: str, folder: Path) -> Summary:
    """Carry every whole artifact of a place, its journal and lambda.json to a run folder."""
    place = find_place(where, named="pull")
    with hold(folder):
        carried = pull_run(place, folder)
    if carried is None:
        raise ArtifactError(f"{place}: no run was pushed here (no {PROCESS})")
    return _told("pull", carried) | {"folder": str(folder)}


def _told(verb: str, carried: dict[str, int]) -> Summary:
    artifacts = [name for name in carried if not name.endswith(LINES)]
    for name in artifacts:
        if carried[name]:
            say(f"{verb}: {name}, {carried[name] / 1e6:,.1f} MB")
    return {"artifacts": len(artifacts), "bytes": sum(carried.values())}
