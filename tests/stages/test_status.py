"""How far a run is, and what of it can go: from its folder alone."""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sp2dpo_ray.config import load_config
from sp2dpo_ray.core.artifact import Manifest, open_artifact
from sp2dpo_ray.errors import ArtifactError, Stopped
from sp2dpo_ray.run import Run
from sp2dpo_ray.stages import STAGES
from sp2dpo_ray.stages import clean as cleaning
from sp2dpo_ray.stages import status as module
from sp2dpo_ray.stages.clean import clean
from sp2dpo_ray.stages.status import status


def run_of(config: Path, *overrides: str) -> Run:
    run = Run(load_config(str(config), overrides))
    run.write_lambda()
    return run


def states(folder: Path) -> dict[str, str]:
    return {row["artifact"]: row["state"] for row in status(folder)["artifacts"]}


@pytest.mark.ray
def test_a_run_is_told_from_its_folder(ray_cluster: None, demo_config: Path) -> None:
    run = run_of(demo_config, "train.epochs=1")
    with pytest.raises(ArtifactError, match=r"no run folder"):
        status(run.folder.parent)
    begun = status(run.folder)
    assert (begun["artifacts"], begun["training"], begun["at_work"]) == ([], [], False)
    assert begun["annotation"]["calls_of_each_teacher"] is None
    pairs = STAGES["prepare"](run)
    asked = 3 * (pairs["pairs"] + pairs["eval_pairs"])
    for stage in ("student", "annotate", "schedule", "reference", "train"):
        STAGES[stage](run)
    moved = run.folder.rename(run.folder.with_name("elsewhere"))  # nothing knows where it lies
    told = status(moved)
    assert told["lambda_id"] == run.config.lambda_id
    assert told["annotation"]["calls_of_each_teacher"] == asked
    assert {n: row["calls"] for n, row in told["annotation"]["teachers"].items()} == {
        "alba": asked, "bruno": asked,
    }  # fmt: skip
    (row,) = told["training"]
    assert (row["arm"], row["step"], row["finished"]) == ("jmamp", row["steps"], True)
    assert set(states(moved).values()) == {"finished"}
    assert told["idle_seconds"] < 120

    shown = subprocess.run(
        [sys.executable, "-m", "sp2dpo_ray", "status", str(moved)], capture_output=True, text=True
    )
    assert shown.returncode == 0
    for words in ("train/jmamp", f"alba: {asked:,} of {asked:,} calls settled", "finished"):
        assert words in shown.stderr


@pytest.mark.ray
def test_what_nobody_reads_again_can_go_and_nothing_else(
    ray_cluster: None, demo_config: Path
) -> None:
    run = run_of(demo_config, "train.epochs=1")
    for stage in ("prepare", "student", "annotate", "schedule", "reference", "train"):
        STAGES[stage](run)
    assert clean(run.folder) == {"could_go": [], "bytes": 0}
    shorter = run_of(demo_config, "train.epochs=1", "train.max_length=200")
    STAGES["reference"](shorter)  # a second one; no arm was trained with it
    for name in (".schedule.partial", ".schedule.old", "reference/.abc-parts"):
        left = run.path(*name.split("/"))
        left.mkdir()
        (left / "rows").write_bytes(bytes(1000))
    journal = {path: path.read_bytes() for path in run.path("journal").rglob("*.jsonl")}
    listed = clean(run.folder)
    assert len(listed["could_go"]) == 4
    assert listed["bytes"] > 3_000
    assert run.path(".schedule.old").exists()  # it was asked what could go
    with run.locked(), pytest.raises(Stopped, match="a command is working on"):
        clean(run.folder, apply=True)
    removed = clean(run.folder, apply=True)
    assert removed == {"removed": listed["could_go"], "bytes": listed["bytes"]}
    assert clean(run.folder)["could_go"] == []
    for name in ("pairs", "annotations", "schedule", "train/jmamp"):
        open_artifact(run.path(*name.split("/")))
    assert STAGES["train"](run)["reused"] is True
    assert {path: path.read_bytes() for path in journal} == journal

    # another map: the arm was made of a schedule that lies here no more
    STAGES["schedule"](run_of(demo_config, "train.epochs=1", "mapping.beta_max=0.2"))
    assert states(run.folder)["train/jmamp"] == "inputs have changed"
    assert clean(run.folder)["could_go"] == []
    (stale,) = clean(run.folder, stale=True)["could_go"]
    assert (stale["path"], stale["why"]) == ("train/jmamp", "inputs have changed")
    clean(run.folder, stale=True, apply=True)
    assert not run.path("train", "jmamp").exists()
    open_artifact(run.path("schedule"))


def test_another_releases_artifact_is_told_and_left(tmp_path: Path, demo_config: Path) -> None:
    run = run_of(demo_config)
    STAGES["prepare"](run)
    manifest = run.path("pairs", "manifest.json")
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(content | {"schema_version": 1}))
    assert states(run.folder) == {"pairs": "another release's"}
    assert clean(run.folder, stale=True, apply=True) == {"removed": [], "bytes": 0}
    assert manifest.exists()  # of what this release cannot read nobody knows whether it is stale
    shutil.copytree(run.path("pairs"), run.path(".pairs.partial"))
    assert states(run.folder) == {"pairs": "another release's"}  # a draft is none
    with run.path(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert status(run.folder)["at_work"] is True
    assert status(run.folder)["at_work"] is False


def test_files_that_go_while_they_are_looked_at(
    demo_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(demo_config)
    STAGES["prepare"](run)
    parts = run.path("reference", ".abc-parts")
    parts.mkdir(parents=True)
    (parts / "rows.partial").symlink_to("gone")  # listed, and not there any more
    look, walks = module.manifests_in, []

    def walk(folder: Path) -> dict[str, Manifest | None]:
        walks.append(folder)
        if len(walks) == 1:
            raise FileNotFoundError(".schedule.partial")
        return look(folder) | {"train/replaced": look(folder)["pairs"]}

    monkeypatch.setattr(module, "manifests_in", walk)
    assert states(run.folder) == {"pairs": "finished"}
    (row,) = clean(run.folder)["could_go"]
    assert (row["path"], row["bytes"]) == ("reference/.abc-parts", 0)


def test_nobody_begins_to_work_while_it_is_cleaned(
    demo_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(demo_config)
    run.path(".schedule.old").mkdir()
    held = []
    leftovers = cleaning._leftovers

    def look(folder: Path) -> list[tuple[Path, str]]:
        try:
            with run.locked():
                held.append(False)
        except Stopped:
            held.append(True)
        return leftovers(folder)

    monkeypatch.setattr(cleaning, "_leftovers", look)
    clean(run.folder)
    clean(run.folder, apply=True)
    assert held == [False, True]
    monkeypatch.setattr(cleaning, "status", lambda folder: {"at_work": False})  # it began just now
    with run.locked(), pytest.raises(Stopped, match="a command is working on"):
        clean(run.folder, apply=True)
