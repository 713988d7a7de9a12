"""Artifacts: whole or nothing, unaltered or refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sp2dpo_ray.core import artifact, hashing
from sp2dpo_ray.core.artifact import Provenance, open_artifact, publish, read_manifest
from sp2dpo_ray.errors import ArtifactError
from tests.core.schedule.test_columns import annotations, build


def test_publishing_twice_gives_identical_bytes(tmp_path: Path) -> None:
    digests = []
    for name in ("one", "two"):
        with publish(tmp_path / name, Provenance("schedule", "k", "l", {})) as draft:
            draft.write_table("schedule.parquet", build(annotations()).table)
            draft.summary["pairs"] = 6
        digests.append((tmp_path / name / "schedule.parquet").read_bytes())
        digests.append((tmp_path / name / "manifest.json").read_bytes())
    assert digests[:2] == digests[2:]


def test_a_failed_stage_leaves_the_old_artifact(tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    provenance = Provenance("stage", "key", "lambda", {})
    with publish(folder, provenance) as draft:
        (draft.path / "a.txt").write_text("old")

    def fill_the_disk() -> None:
        with publish(folder, provenance) as draft:
            (draft.path / "a.txt").write_text("new")
            raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        fill_the_disk()
    assert (folder / "a.txt").read_text() == "old"
    open_artifact(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]


def test_a_folder_without_a_manifest_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "schedule.parquet").write_text("half")
    assert read_manifest(tmp_path) is None
    with pytest.raises(ArtifactError, match="no finished artifact"):
        open_artifact(tmp_path)


def test_an_altered_or_missing_file_is_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    with publish(folder, Provenance("stage", "key", "lambda", {})) as draft:
        (draft.path / "a.txt").write_text("original")
    (folder / "a.txt").write_text("altered!")
    with pytest.raises(ArtifactError, match=r"a\.txt: altered since it was published"):
        open_artifact(folder)
    (folder / "a.txt").unlink()
    with pytest.raises(ArtifactError, match=r"a\.txt: listed in the manifest but missing"):
        open_artifact(folder)


def test_a_file_is_hashed_again_when_it_has_changed_and_not_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with artifact.publish(tmp_path / "a", artifact.Provenance("pairs", "k", "l", {})) as draft:
        (draft.path / "weights").write_bytes(b"one")
    read = []
    plain = hashing.sha256_file
    monkeypatch.setattr(hashing, "sha256_file", lambda path: read.append(path) or plain(path))
    for _ in range(3):
        artifact.open_artifact(tmp_path / "a")
    assert len(read) == 1
    times = (tmp_path / "a" / "weights").stat()
    (tmp_path / "a" / "weights").write_bytes(b"two")  # the same size, and its time put back
    os.utime(tmp_path / "a" / "weights", ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(ArtifactError, match="altered since it was published"):
        artifact.open_artifact(tmp_path / "a")
