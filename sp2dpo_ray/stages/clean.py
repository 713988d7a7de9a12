"""Command `clean`: what of a run folder nobody will read again, by its manifests.

In: a run folder. Out: what can go, with its size; with `apply` it is gone. Invariant: the journal,
the pairs, verdicts of people and every artifact whose inputs lie here are never touched, nor a
folder that a command is working on.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from sp2dpo_ray.core.artifact import MANIFEST, read_manifest
from sp2dpo_ray.errors import ArtifactError, Stopped
from sp2dpo_ray.run import Summary
from sp2dpo_ray.stages.status import OUTDATED, artifacts_of, status

KEPT = frozenset({"prepare", "verdicts"})  # stages whose artifacts nothing here could make again


def clean(folder: Path, *, stale: bool = False, apply: bool = False) -> Summary:
    """Leftovers of interrupted stages, references that no arm was trained with, and with `stale`
    artifacts whose inputs are no longer the ones that lie here.

    Raises Stopped while a command works on the folder.
    """
    state = status(folder)  # and so it is a run folder
    if state["at_work"]:
        raise Stopped(f"a command is working on {folder}; clean it when it is done")
    found = _leftovers(folder) + _unread(folder)
    if stale:
        found += [
            (folder / row["artifact"], row["state"])
            for row in artifacts_of(folder)
            if row["state"] == OUTDATED and row["stage"] not in KEPT
        ]
    rows: list[dict[str, Any]] = []
    for path, why in dict(found).items():
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        rows.append({"path": path.relative_to(folder).as_posix(), "why": why, "bytes": size})
        if apply:
            shutil.rmtree(path)
    return {"removed" if apply else "could_go": rows, "bytes": sum(row["bytes"] for row in rows)}


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
