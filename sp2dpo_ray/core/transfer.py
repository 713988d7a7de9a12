"""Run folders and object stores: artifacts and journals carried to a place, and back.

In: a run folder and a place. Out: bytes carried. Invariant: an artifact counts at its new place
only when it is whole, since its manifest goes last, and a pulled one was held against its manifest
before it takes the place of another; what is there already is not carried again.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path, PurePosixPath

from sp2dpo_ray.core.artifact import (
    MANIFEST,
    manifests_in,
    open_artifact,
    put_in_place,
    write_atomically,
)
from sp2dpo_ray.core.files import CHECKPOINTS
from sp2dpo_ray.core.place import Place
from sp2dpo_ray.errors import ArtifactError

PROCESS, LINES = "lambda.json", ".jsonl"
JOURNALS = ("journal/", "eval/journal/")  # the teachers', the judge's


def push_run(folder: Path, place: Place) -> dict[str, int]:
    """Carry every finished artifact, the journals and lambda.json; bytes by name, 0 where it was
    there. Raises ArtifactError for what was altered, before any of it goes."""
    if not (folder / PROCESS).is_file():
        raise ArtifactError(f"{folder}: no run folder (no {PROCESS} in it)")
    there = place.files("")
    carried = {}
    paid = [path for name in JOURNALS for path in (folder / name).rglob(f"*{LINES}")]
    for path in sorted(paid):
        name, size = path.relative_to(folder).as_posix(), path.stat().st_size
        carried[name] = 0
        if there.get(name) != size:  # segments only grow: of the same length they are the same
            with path.open("rb") as source:
                place.put_file(name, source)
            carried[name] = size
    for artifact in (name for name, manifest in manifests_in(folder).items() if manifest):
        carried[artifact] = push_artifact(folder, artifact, place)
    place.put(PROCESS, (folder / PROCESS).read_bytes())
    return carried


def push_artifact(folder: Path, artifact: str, place: Place) -> int:
    """Bytes carried; 0 where the same one was there."""
    home = folder / artifact
    words = (home / MANIFEST).read_bytes()
    last = f"{artifact}/{MANIFEST}"
    known = _read(place, last)
    if known == words:
        return 0
    manifest = open_artifact(home)  # what was altered is not carried
    if known is not None:
        place.remove(last)  # from here on the old one does not count
    for name in manifest.files:
        with (home / name).open("rb") as source:
            place.put_file(f"{artifact}/{name}", source)
    place.put(last, words)
    return sum((home / name).stat().st_size for name in manifest.files)


def pull_run(place: Place, folder: Path, *, journal: bool = True) -> dict[str, int] | None:
    """Carry every whole artifact, the journals if wanted, and lambda.json to a run folder; bytes by
    name, None where no run was pushed."""
    there = place.files("")
    if PROCESS not in there:
        return None
    carried = {
        name: _fetch(place, name, folder / _inside(name), size)
        for name, size in there.items()
        if journal and name.startswith(JOURNALS) and name.endswith(LINES)
    }
    for name in there:
        if name.endswith(f"/{MANIFEST}"):
            artifact = name.removesuffix(f"/{MANIFEST}")
            carried[artifact] = _pull_artifact(place, artifact, folder / _inside(artifact))
    write_atomically(folder / PROCESS, (_read(place, PROCESS) or b"").decode().rstrip("\n"))
    return carried


def _pull_artifact(place: Place, artifact: str, home: Path) -> int:
    words = _read(place, f"{artifact}/{MANIFEST}")
    if words is None:  # somebody is carrying another one there
        return 0
    if (home / MANIFEST).is_file() and (home / MANIFEST).read_bytes() == words:
        open_artifact(home)
        return 0
    going = home / CHECKPOINTS
    if going.is_dir() and not (going / json.loads(words)["key"][:16]).is_dir():
        return 0  # a training of something else is on its way here
    draft = home.with_name(f".{home.name}.partial")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        files = json.loads(words)["files"]
        draft.mkdir(parents=True)
        carried = sum(_fetch(place, f"{artifact}/{name}", draft / _inside(name)) for name in files)
        (draft / MANIFEST).write_bytes(words)
        open_artifact(draft)
        put_in_place(draft, home)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return carried


def _read(place: Place, name: str) -> bytes | None:
    try:
        with place.open(name) as source:
            return source.read()
    except FileNotFoundError:
        return None


def _fetch(place: Place, name: str, path: Path, size: int | None = None) -> int:
    """Bytes carried; none where a file of this size is there."""
    if size is not None and path.is_file() and path.stat().st_size >= size:
        return 0
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with place.open(name) as source, partial.open("wb") as target:
        shutil.copyfileobj(source, target)
    partial.replace(path)
    return path.stat().st_size


def _inside(name: str) -> str:
    """A name of the place as a path below the run folder; nobody's names lead out of it."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ArtifactError(f"{name!r} leads out of the run folder; nothing more was pulled")
    return str(path)
