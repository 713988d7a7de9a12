"""Command `clean`: what of a run folder nobody will read again, by its manifests.

In: a run folder. Out: what can go, with its size; with `apply` it is gone, from the object store
too where the folder is the mirror of a run there. Invariant: the journal, the pairs, verdicts of
people and every artifact whose inputs lie here are never touched, nor a folder that a command is
working on.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from sp2dpo_ray.config import Config
from sp2dpo_ray.console import say
from sp2dpo_ray.core.artifact import MANIFEST, read_manifest
from sp2dpo_ray.core.transfer import PROCESS
from sp2dpo_ray.errors import ArtifactError, Stopped
from sp2dpo_ray.run import Held, Run, Summary, hold
from sp2dpo_ray.stages.status import OUTDATED, artifacts_of, bytes_in, status

KEPT = frozenset({"prepare", "verdicts"})  # stages whose artifacts nothing here could make again


def clean(folder: Path, *, stale: bool = False, apply: bool = False) -> Summary:
    """Leftovers of interrupted stages, references that no arm was trained with, and with `stale`
    artifacts whose inputs are no longer the ones that lie here.

    Raises Stopped while a command works on the folder.
    """
    if status(folder)["at_work"]:  # and so it is a run folder
        raise Stopped(_busy(folder))
    if not apply:
        rows = [_row(folder, path, why) for path, why in _found(folder, stale)]
        return {"could_go": rows, "bytes": sum(row["bytes"] for row in rows)}
    try:
        with hold(folder):
            return _remove(folder, stale)
    except Held:
        raise Stopped(_busy(folder)) from None


def _busy(folder: Path) -> str:
    return f"a command is working on {folder}; clean it when it is done"


def _remove(folder: Path, stale: bool) -> Summary:
    run = _stored(folder)
    store = None if run is None else run.store
    if run is not None:
        run.fetch()  # what others added tells what is read
    names = [] if store is None else [*store.files("")]
    rows = []
    for path, why in _found(folder, stale):
        row = _row(folder, path, why)
        # its manifest first: without it the rest counts for nobody
        inside = [name for name in names if name.startswith(f"{row['path']}/")]
        for name in sorted(inside, key=lambda name: not name.endswith(f"/{MANIFEST}")):
            assert store is not None
            store.remove(name)
        if inside:
            say(f"clean: {row['path']} is removed from {store} too")
        shutil.rmtree(path)
        rows.append(row)
    return {"removed": rows, "bytes": sum(row["bytes"] for row in rows)}


def _stored(folder: Path) -> Run | None:
    """The run in an object store that this folder is the mirror of, if it is one."""
    process = json.loads((folder / PROCESS).read_text(encoding="utf-8"))
    if "://" not in process["config"]["run"]["storage"]:
        return None
    try:
        run = Run(Config.model_validate(process["config"]))
    except ValueError as error:
        raise ArtifactError(f"{folder / PROCESS}: of another release: {error}") from None
    if run.folder != folder.resolve():
        say(f"clean: {run.store} keeps all it has: {folder} is not its mirror ({run.folder})")
        return None
    return run


def _found(folder: Path, stale: bool) -> list[tuple[Path, str]]:
    found = _leftovers(folder) + _unread(folder)
    if stale:
        found += [
            (folder / row["artifact"], row["state"])
            for row in artifacts_of(folder)
            if row["state"] == OUTDATED and row["stage"] not in KEPT
        ]
    return list(dict(found).items())


def _row(folder: Path, path: Path, why: str) -> dict[str, Any]:
    return {"path": path.relative_to(folder).as_posix(), "why": why, "bytes": bytes_in(path)}


def _leftovers(folder: Path) -> list[tuple[Path, str]]:
    """Drafts, what they replaced, and parts of passes that were never finished."""
    patterns = {
        ".*.partial": "a draft that was never finished",
        ".*.old": "replaced",
        ".*-parts": "parts of a pass that was never finished",
        ".distill": "scratch of an encoder's training",
    }
    return [
        (path, why)
        for pattern, why in patterns.items()
        for path in sorted(folder.rglob(pattern))
        if path.is_dir() and "journal" not in path.relative_to(folder).parts
    ]


def _unread(folder: Path) -> list[tuple[Path, str]]:
    """References that were replaced: some arm was trained here, none with them."""
    read = set()
    for path in folder.glob(f"train/*/{MANIFEST}"):
        try:
            manifest = read_manifest(path.parent)
        except ArtifactError:
            return []  # what another release trained with cannot be told
        if manifest is not None:
            read.add(manifest.inputs.get("reference"))
    found = []
    for path in sorted(folder.glob(f"reference/*/{MANIFEST}")):
        try:
            manifest = read_manifest(path.parent)
        except ArtifactError:
            continue
        if read and manifest is not None and manifest.digest not in read:
            found.append((path.parent, "no arm here was trained with it"))
    return found
