"""Runs that are carried to an object store and back: moto's S3, through pyarrow."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sp2dpo_ray.config import load_config
from sp2dpo_ray.core.artifact import open_artifact
from sp2dpo_ray.core.place import Folder, Place, find_place
from sp2dpo_ray.errors import ArtifactError, ConfigError, Stopped
from sp2dpo_ray.run import Run
from sp2dpo_ray.stages import STAGES
from sp2dpo_ray.stages.transfer import pull, push


def annotated(config: Path, *overrides: str) -> Run:
    run = Run(load_config(str(config), overrides))
    run.write_lambda()
    for stage in ("prepare", "annotate", "schedule"):
        STAGES[stage](run)
    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


@pytest.mark.ray
def test_a_run_goes_to_a_bucket_and_comes_back_and_goes_on(
    ray_cluster: None, demo_config: Path, bucket: str, tmp_path: Path
) -> None:
    run = annotated(demo_config)
    there = bucket.format("runs/one")
    told = push(run.folder, there)
    assert told["artifacts"] == 3
    assert told["bytes"] > 10_000
    assert "?" not in told["to"]
    assert push(run.folder, there)["bytes"] == 0  # nothing is carried twice
    elsewhere = tmp_path / "other" / "test"
    assert pull(there, elsewhere)["artifacts"] == 3
    assert contents(elsewhere) == contents(run.folder)
    assert pull(there, elsewhere)["bytes"] == 0
    again = Run(load_config(str(demo_config), (f"run.storage={tmp_path}/other",)))
    assert all(STAGES[stage](again)["reused"] for stage in ("prepare", "schedule"))
    assert STAGES["plan"](again)["calls_recorded"] == STAGES["plan"](again)["calls"]

    # another map: one artifact is another, and replaces what was there
    changed = Run(load_config(str(demo_config), ("mapping.beta_max=0.2",)))
    STAGES["schedule"](changed)
    assert 0 < push(run.folder, there)["bytes"] < told["bytes"]
    pull(there, elsewhere)
    assert contents(elsewhere) == contents(run.folder)


def test_a_judges_journal_goes_along(demo_config: Path, tmp_path: Path) -> None:
    run = Run(load_config(str(demo_config)))
    run.write_lambda()
    STAGES["prepare"](run)
    for name in ("journal/alba", "eval/journal/judge"):
        run.path(*name.split("/")).mkdir(parents=True)
        run.path(*name.split("/"), "0001.jsonl").write_text(f"{name}\n")
    there, back = tmp_path / "there", tmp_path / "back"
    push(run.folder, str(there))
    pull(str(there), back)
    assert (
        back / "eval" / "journal" / "judge" / "0001.jsonl"
    ).read_text() == "eval/journal/judge\n"
    assert contents(back) == contents(run.folder)


def test_a_pull_leaves_a_training_on_its_way(demo_config: Path, tmp_path: Path) -> None:
    """The place holds the arm of earlier options; here another training of it has a checkpoint."""
    run = Run(load_config(str(demo_config)))
    run.write_lambda()
    folder = run.path("train", "jmamp")
    with run.publish(folder, run.provenance("train", "earlier", {})) as draft:
        (draft.path / "metrics.jsonl").write_text("earlier\n")
    there = tmp_path / "there"
    push(run.folder, str(there))
    earlier = contents(folder)
    (folder / "manifest.json").unlink()
    step = folder / "checkpoints" / "another-training" / "step-5"
    step.mkdir(parents=True)
    pull(str(there), run.folder)
    assert step.is_dir()
    assert not (folder / "manifest.json").exists()
    # what is on its way is what lies there: it was finished elsewhere, and is taken
    step.parent.rename(step.parent.with_name(run.provenance("train", "earlier", {}).key[:16]))
    pull(str(there), run.folder)
    assert contents(folder) == earlier


class Breaks:
    """A place whose connection is lost after so many files."""

    def __init__(self, place: Place, after: int) -> None:
        self._place, self._left = place, after

    def put_file(self, name: str, source: object) -> None:
        self._left -= 1
        if self._left < 0:
            raise OSError("connection reset")
        self._place.put_file(name, source)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> object:
        return getattr(self._place, name)


def test_a_broken_push_leaves_nothing_that_counts(
    demo_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(load_config(str(demo_config)))
    run.write_lambda()
    STAGES["prepare"](run)
    there, back = tmp_path / "there", tmp_path / "back"
    push(run.folder, str(there))
    STAGES["prepare"](Run(load_config(str(demo_config), ("data.limit=30",))))
    monkeypatch.setattr(
        "sp2dpo_ray.stages.transfer.find_place", lambda where, named: Breaks(Folder(there), 1)
    )
    with pytest.raises(OSError, match="connection reset"):
        push(run.folder, str(there))
    monkeypatch.undo()
    assert pull(str(there), back)["artifacts"] == 0  # neither the old one nor half of the new one
    push(run.folder, str(there))
    assert pull(str(there), back)["artifacts"] == 1
    assert contents(back) == contents(run.folder)


def test_what_was_altered_on_the_way_is_refused_and_the_old_one_stays(
    demo_config: Path, tmp_path: Path
) -> None:
    run = Run(load_config(str(demo_config)))
    run.write_lambda()
    STAGES["prepare"](run)
    there, back = tmp_path / "there", tmp_path / "back"
    push(run.folder, str(there))
    pull(str(there), back)
    before = contents(back)
    STAGES["prepare"](Run(load_config(str(demo_config), ("data.limit=30",))))
    push(run.folder, str(there))
    file = there / "pairs" / "train.parquet"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(ArtifactError, match="altered since it was published"):
        pull(str(there), back)
    assert contents(back) == before
    open_artifact(back / "pairs")
    local = run.path("pairs", "train.parquet")
    local.write_bytes(local.read_bytes()[:-1] + b"x")
    with pytest.raises(ArtifactError, match="altered"):
        push(run.folder, str(tmp_path / "new"))


def test_names_that_lead_elsewhere_are_refused(demo_config: Path, tmp_path: Path) -> None:
    run = Run(load_config(str(demo_config)))
    run.write_lambda()
    STAGES["prepare"](run)
    there = tmp_path / "there"
    push(run.folder, str(there))
    manifest = there / "pairs" / "manifest.json"
    content = json.loads(manifest.read_text())
    content["files"]["../../../evil.txt"] = "0" * 64
    manifest.write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match="leads out of the run folder"):
        pull(str(there), tmp_path / "a" / "b" / "back")
    assert not list(tmp_path.rglob("evil.txt"))


def test_places_and_folders_that_are_none(demo_config: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no run was pushed here"):
        pull(str(tmp_path / "nothing"), tmp_path / "back")
    with pytest.raises(ArtifactError, match="no run folder"):
        push(tmp_path, str(tmp_path / "there"))
    run = Run(load_config(str(demo_config)))
    run.write_lambda()
    with pytest.raises(ConfigError, match=r"push: 'xyz://a' cannot be used"):
        push(run.folder, "xyz://a")
    with run.locked(), pytest.raises(Stopped, match="another command is working on"):
        push(run.folder, str(tmp_path / "there"))
    done = subprocess.run(
        [sys.executable, "-m", "sp2dpo_ray", "push", str(run.folder), str(tmp_path / "there")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0
    assert find_place(str(tmp_path / "there")).files("") == {"lambda.json": (
        run.path("lambda.json").stat().st_size)}  # fmt: skip
