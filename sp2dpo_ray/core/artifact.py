"""Artifacts: folders of files with a manifest that is written last.

In: files that a stage writes into a draft. Out: the folder, whole, or nothing. Invariant: a folder
with a manifest is complete and unaltered; a folder without one does not count, so an interrupted
stage can never be taken for a finished one.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sp2dpo_ray import __version__
from sp2dpo_ray.core.hashing import canonical_json, sha256_file, sha256_hex, sha256_once
from sp2dpo_ray.errors import ArtifactError

MANIFEST = "manifest.json"
SCHEMA_VERSIONS = {
    "prepare": 2,
    "schedule": 4,
}  # of the stages whose files have changed since; else 1
ROWS_AT_ONCE = 4_096  # of a row group: what a reader must hold at a time


@dataclass(frozen=True, slots=True)
class Provenance:
    """Which stage made an artifact, from what. `key` hashes `settings`, the configuration that the
    stage reads, and the digests of `inputs`; equal keys mean equal artifacts."""

    stage: str
    key: str
    lambda_id: str
    inputs: dict[str, str]
    settings: Any = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a folder holds; `digest` names it to the stages that read it."""

    stage: str
    key: str
    lambda_id: str
    inputs: dict[str, str]
    files: dict[str, str]
    summary: dict[str, Any]
    settings: Any = None
    schema_version: int = 1
    code_version: str = __version__

    @property
    def digest(self) -> str:
        """Hash of the contents: not of who asked for them."""
        return sha256_hex([self.schema_version, self.stage, self.files])


@dataclass(slots=True)
class Draft:
    """A folder that is being written, and the figures that its manifest will carry."""

    path: Path
    summary: dict[str, Any] = field(default_factory=dict)

    def write_table(self, name: str, table: pa.Table) -> None:
        """Write a table as parquet; equal tables give equal bytes."""
        pq.write_table(
            table,
            self.path / name,
            compression="zstd",
            write_statistics=True,
            row_group_size=ROWS_AT_ONCE,
        )


@contextlib.contextmanager
def publish(folder: Path, provenance: Provenance) -> Iterator[Draft]:
    """Write an artifact beside `folder` and put it in its place only when it is whole."""
    draft = Draft(folder.with_name(f".{folder.name}.partial"))
    shutil.rmtree(draft.path, ignore_errors=True)  # what a killed run left behind
    draft.path.mkdir(parents=True)
    try:
        yield draft
        seal(draft.path, provenance, draft.summary)
        put_in_place(draft.path, folder)
    finally:
        shutil.rmtree(draft.path, ignore_errors=True)


def seal(folder: Path, provenance: Provenance, summary: dict[str, Any]) -> Manifest:
    """Flush every file below `folder` to disk, then write the manifest that lists them."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != MANIFEST and not path.name.endswith(".partial"):
            _flush(path)
            files[path.relative_to(folder).as_posix()] = sha256_file(path)
    manifest = Manifest(
        provenance.stage,
        provenance.key,
        provenance.lambda_id,
        provenance.inputs,
        files,
        json.loads(canonical_json(summary)),
        json.loads(canonical_json(provenance.settings)),
        _schema_version(provenance.stage),
    )
    write_atomically(folder / MANIFEST, json.dumps(asdict(manifest), indent=2, sort_keys=True))
    return manifest


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old text or the new one, never a part."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text + "\n", encoding="utf-8")
    _flush(partial)
    os.replace(partial, path)
    _flush(path.parent)


class OtherVersion(ArtifactError):
    """An artifact whose schema is that of another release."""


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of an artifact, or None if the folder holds no finished one."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        manifest = Manifest(**content)
    except (ValueError, TypeError) as error:
        raise ArtifactError(f"{path}: not a manifest: {error}") from error
    known = _schema_version(manifest.stage)
    if manifest.schema_version != known:
        raise OtherVersion(
            f"{path}: {manifest.stage} of schema version {manifest.schema_version}, made by "
            f"release {manifest.code_version}; this one reads version {known}. Read it with that "
            f"release, or remove {folder} and run: sp2dpo {manifest.stage}"
        )
    return manifest


def manifests_in(folder: Path) -> dict[str, Manifest | None]:
    """Every published artifact below a run folder by name, None where another release made it;
    drafts are none."""
    found: dict[str, Manifest | None] = {}
    for path in sorted(folder.rglob(MANIFEST)):
        name = path.parent.relative_to(folder)
        if any(part.startswith(".") for part in name.parts):
            continue
        try:
            found[name.as_posix()] = read_manifest(path.parent)
        except OtherVersion:
            found[name.as_posix()] = None
    return found


def _schema_version(stage: str) -> int:
    return SCHEMA_VERSIONS.get(stage, 1)


def open_artifact(folder: Path) -> Manifest:
    """The manifest of a finished artifact after every file was checked against it."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise ArtifactError(f"{folder}: no finished artifact here (no {MANIFEST})")
    for name, digest in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise ArtifactError(f"{path}: listed in the manifest but missing; remove {folder} "
                                "and run the stage again")  # fmt: skip
        if sha256_once(path) != digest:
            raise ArtifactError(
                f"{path}: altered since it was published (its SHA-256 differs from the manifest); "
                f"restore it, or remove {folder} and run the stage again"
            )
    return manifest


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def put_in_place(new: Path, folder: Path) -> None:
    """Make `folder` what `new` is; what was there before is gone only then."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(new, folder)
    _flush(folder.parent)
    shutil.rmtree(old, ignore_errors=True)
