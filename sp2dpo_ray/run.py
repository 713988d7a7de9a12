"""One run: its folder, its configuration, and the rule by which a stage is done or not.

In: a `Config`. Out: keys, provenance and lambda.json. Invariant: a stage's key hashes only the part
of the configuration that it reads and the contents of its inputs, so a changed training option
leaves the schedule alone, and a changed input is seen.
"""

from __future__ import annotations

import fcntl
import json
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from sp2dpo_ray import __version__
from sp2dpo_ray.config import Config
from sp2dpo_ray.config.section import uri_below
from sp2dpo_ray.console import say
from sp2dpo_ray.core.artifact import (
    Draft,
    Manifest,
    OtherVersion,
    Provenance,
    open_artifact,
    publish,
    read_manifest,
    seal,
    write_atomically,
)
from sp2dpo_ray.core.files import PAIRS_TABLE
from sp2dpo_ray.core.hashing import sha256_hex
from sp2dpo_ray.core.place import ObjectStore, find_place
from sp2dpo_ray.core.transfer import PROCESS, pull_run, push_artifact
from sp2dpo_ray.core.versions import package_versions
from sp2dpo_ray.errors import ArtifactError, Stopped

Summary = dict[str, Any]
UNSENT = ".unsent"  # marks an artifact that the object store has not got yet; holds its key


class Held(Stopped):
    """Another command is working on the run folder."""


@dataclass(frozen=True, slots=True)
class Run:
    """A configuration and the folder that its stages write to.

    offline: ask no teacher; a call that is not on record is an error.
    """

    config: Config
    offline: bool = False

    @property
    def folder(self) -> Path:
        """Where stages work: the run's folder, or the mirror of a run in an object store."""
        return self.config.run.folder

    @property
    def store(self) -> ObjectStore | None:
        """The object store that holds the run, if one does."""
        uri = self.config.run.uri
        return None if uri is None else ObjectStore(uri)

    def journal_at(self, given: str | None, *names: str) -> str:
        """Where a journal lies: as given, else in the run, which may be in an object store."""
        uri = self.config.run.uri
        own = str(self.path(*names)) if uri is None else uri_below(uri, "/".join(names))
        return given or own

    def fetch(self) -> None:
        """Bring what the object store holds of this run into its mirror; journals stay there.

        What an earlier command finished here and could not carry there goes first.
        """
        if self.config.run.uri is not None:
            place = find_place(self.config.run.uri, named="run.storage")
            for mark in sorted(self.folder.rglob(f".*{UNSENT}")):
                artifact = mark.with_name(mark.name[1:].removesuffix(UNSENT))
                manifest = read_manifest(artifact)
                if manifest and manifest.key == mark.read_text(encoding="utf-8"):
                    self.upload(artifact)
                mark.unlink(missing_ok=True)
            carried = pull_run(place, self.folder, journal=False) or {}
            for name in (name for name, size in carried.items() if size):
                say(f"{name}: from {place}")

    def fetch_if_free(self) -> None:
        """The same for a command that only reads: where another one works, the mirror must do."""
        with suppress(Held):
            if self.config.run.uri is not None:
                with self.locked():
                    self.fetch()

    def upload(self, folder: Path) -> None:
        """Bring a published artifact to the object store that holds the run."""
        if store := self.store:
            push_artifact(self.folder, folder.relative_to(self.folder).as_posix(), store)
            _mark(folder).unlink(missing_ok=True)

    def _will_upload(self, folder: Path, provenance: Provenance) -> None:
        # killed between here and there, the next command must not take the store's older one for it
        if self.config.run.uri is not None:
            folder.parent.mkdir(parents=True, exist_ok=True)
            _mark(folder).write_text(provenance.key, encoding="utf-8")

    def path(self, *names: str) -> Path:
        return self.folder.joinpath(*names)

    def pairs_file(self, split: str) -> Path:
        return self.path("pairs", PAIRS_TABLE.format(split=split))

    def provenance(self, stage: str, settings: Any, inputs: dict[str, Path]) -> Provenance:
        """The key of a stage from its settings and the checked contents of its inputs.

        Raises ArtifactError that names the stage to run first when an input is missing.
        """
        digests = {}
        for name, folder in inputs.items():
            if read_manifest(folder) is None:
                raise ArtifactError(
                    f"stage {stage} needs {name}, which {folder} does not hold; run: sp2dpo {name} "
                    "with the same configuration"
                )
            digests[name] = open_artifact(folder).digest
        key = sha256_hex([stage, settings, digests])
        return Provenance(stage, key, self.config.lambda_id, digests, settings)

    def finished(self, folder: Path, provenance: Provenance) -> Manifest | None:
        """The manifest in `folder` if it is what this stage would make again, checked."""
        try:
            manifest = read_manifest(folder)
        except OtherVersion as error:
            say(f"{error}. It is made anew")
            return None
        if manifest is None or manifest.key != provenance.key:
            return None
        found = open_artifact(folder)
        self.upload(folder)  # an earlier command may have been cut off before it did
        return found

    def publish_once(
        self, folder: Path, provenance: Provenance, make: Callable[[Draft], None]
    ) -> dict[str, Any]:
        """Make an artifact unless it is there already; returns its summary."""
        if manifest := self.finished(folder, provenance):
            return manifest.summary | {"reused": True}
        with self.publish(folder, provenance) as draft:
            make(draft)
        return draft.summary | {"reused": False}

    @contextmanager
    def publish(self, folder: Path, provenance: Provenance) -> Iterator[Draft]:
        """An artifact beside `folder`, in its place when it is whole, and in the store then."""
        with publish(folder, provenance) as draft:
            yield draft
            self._will_upload(folder, provenance)
        self.upload(folder)

    def seal(self, folder: Path, provenance: Provenance, summary: Summary) -> None:
        """Make an artifact of a folder whose files are written, and carry it to the store."""
        self._will_upload(folder, provenance)
        seal(folder, provenance, summary)
        self.upload(folder)

    def write_lambda(self) -> None:
        """lambda.json: the resolved configuration, its id, the versions of code and packages."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {
            "lambda_id": self.config.lambda_id,
            "config": self.config.resolved,
            "code_version": __version__,
            "python": platform.python_version(),
            "packages": package_versions(),
        }
        write_atomically(self.path(PROCESS), json.dumps(content, indent=2, sort_keys=True))
        if store := self.store:
            store.put(PROCESS, self.path(PROCESS).read_bytes())

    @contextmanager
    def alone(self, *names: str) -> Iterator[None]:
        """Wait until no other process of this run does what these names stand for.

        For what several trials of a sweep may want made at once: the second finds it done.
        """
        path = self.path(*names[:-1], f".{names[-1]}.lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run folder for one command; a second command on it is refused at once."""
        with hold(self.folder):
            yield


def _mark(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}{UNSENT}")


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Hold a run folder; Stopped where another command does."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        if not _lock(file):
            raise Held(
                f"another command is working on {folder}; wait for it, or give this run "
                "another name: --set run.name=..."
            )
        yield


def _lock(file: IO[str]) -> bool:
    """Whether the file is ours; `status` holds it for a moment, so it is asked for a second."""
    for _ in range(10):
        with suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(0.1)
    return False
