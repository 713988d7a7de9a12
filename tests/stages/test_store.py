"""Runs that live in an object store: moto's S3, and machines that share nothing else."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sp2dpo_ray.annotate.pipeline import _read_piece
from sp2dpo_ray.config import load_config
from sp2dpo_ray.core.artifact import Provenance
from sp2dpo_ray.core.place import ObjectStore
from sp2dpo_ray.errors import ConfigError
from sp2dpo_ray.run import Run
from sp2dpo_ray.stages import STAGES, check_shared_folder
from sp2dpo_ray.stages.clean import clean
from tests.conftest import SECRET


def sp2dpo(*arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "sp2dpo_ray", *arguments, "--json"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def on(mirror: Path, bucket: str) -> tuple[str, ...]:
    return ("--set", f"run.storage={bucket}", "--set", f"run.mirror={mirror}")


def run_of(config: Path, *overrides: str) -> Run:
    return Run(load_config(str(config), overrides))


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_goes_on_on_another_machine_that_shares_only_the_bucket(
    ray_cluster: None, demo_config: Path, bucket: str, tmp_path: Path
) -> None:
    local = run_of(demo_config)
    for stage in ("prepare", "annotate", "schedule"):
        STAGES[stage](local)
    uri = bucket.format("store")
    here = (str(demo_config), "--set", 'sweep.arms=["jmamp"]', "--set", "train.epochs=1")
    first, second = on(tmp_path / "one", uri), on(tmp_path / "two", uri)
    for stage in ("prepare", "student", "annotate"):
        sp2dpo(stage, *here, *first)
    store = ObjectStore(uri.replace("store?", "store/test?"))
    names = store.files("")
    assert {"lambda.json", "pairs/manifest.json", "annotations/manifest.json"} <= set(names)
    assert any(name.startswith("journal/alba/") for name in names)
    assert not list((tmp_path / "one").rglob("journal/*"))  # what was paid is nowhere but there
    shutil.rmtree(tmp_path / "one")  # the machine is gone

    told = sp2dpo("run", *here, *second)
    assert [told[stage]["reused"] for stage in ("prepare", "student", "annotate")] == [True] * 3
    assert told["train"]["jmamp"]["reused"] is False
    whole = {name for name in store.files("") if name.endswith("manifest.json")}
    assert {"schedule/manifest.json", "train/jmamp/manifest.json", "report/manifest.json"} <= whole
    third = run_of(demo_config, f"run.storage={uri}", f"run.mirror={tmp_path}/three",
                   'sweep.arms=["jmamp"]', "train.epochs=1")  # fmt: skip
    third.fetch()
    for stage in ("prepare", "student", "annotate", "schedule", "reference", "train"):
        assert STAGES[stage](third)["reused"] is True, stage
    assert third.path("schedule", "schedule.parquet").read_bytes() == (
        local.path("schedule", "schedule.parquet").read_bytes()
    )
    for path in third.folder.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes()


def test_what_a_cut_off_command_did_not_carry_the_next_one_does(
    demo_config: Path, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = bucket.format("cut")
    run = run_of(demo_config, f"run.storage={uri}", f"run.mirror={tmp_path}/m")
    run.fetch()  # nothing is there yet
    with monkeypatch.context() as patch:
        patch.setattr(ObjectStore, "put", refuse)
        with pytest.raises(OSError, match="connection reset"):
            STAGES["prepare"](run)
    assert run.path("pairs", "manifest.json").exists()
    assert run.store is not None
    assert "pairs/manifest.json" not in run.store.files("")
    assert STAGES["prepare"](run)["reused"] is True
    assert "pairs/manifest.json" in run.store.files("")


def refuse(self: ObjectStore, name: str, content: bytes) -> None:
    raise OSError("connection reset")


def test_nodes_read_pairs_where_the_run_is(demo_config: Path, bucket: str, tmp_path: Path) -> None:
    uri = bucket.format("pieces")
    run = run_of(demo_config, f"run.storage={uri}", f"run.mirror={tmp_path}/m")
    STAGES["prepare"](run)
    ids = pq.read_table(run.pairs_file("train"), columns=["prompt_id"])["prompt_id"]
    shutil.rmtree(tmp_path / "m")  # another node has no such file
    piece = pa.Table.from_pylist([{"name": "pairs/train.parquet", "group": 0, "first": 7}])
    rows = _read_piece(piece, run.store)
    assert rows["prompt_id"].to_pylist() == ids.to_pylist()
    assert rows["place"].to_pylist()[0] == 7


def test_stages_that_would_look_on_the_wrong_machine_are_refused(
    demo_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    head = {"Alive": True, "Resources": {"CPU": 4.0, "node:__internal_head__": 1.0}}
    nodes = [{"Alive": True, "Resources": {"CPU": 4.0}}, head, {"Alive": False}]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    far = run_of(demo_config, "run.storage=s3://bucket/runs")
    check_shared_folder(far, STAGES["annotate"])
    with pytest.raises(ConfigError, match=r"has 2 nodes: stage train needs a folder that all"):
        check_shared_folder(far, STAGES["train"])
    check_shared_folder(
        run_of(demo_config), STAGES["train"]
    )  # a folder: its owner says that all see it
    shared = run_of(demo_config, "run.storage=s3://bucket/runs", "run.mirror=/shared/mirror")
    check_shared_folder(shared, STAGES["train"])
    nodes.pop(0)
    check_shared_folder(far, STAGES["train"])


def test_places_of_a_run(demo_config: Path) -> None:
    run = run_of(demo_config, "run.storage=s3://bucket/runs?region=x", "run.mirror=/m")
    assert run.config.run.uri == "s3://bucket/runs/test?region=x"
    assert run.journal_at(None, "eval", "journal") == "s3://bucket/runs/test/eval/journal?region=x"
    assert run.journal_at("/j", "journal") == "/j"
    assert run.folder.parent.parent == Path("/m")
    other = run_of(demo_config, "run.storage=s3://other/runs?region=x", "run.mirror=/m")
    assert other.folder != run.folder  # two buckets may hold runs of one name
    assert other.config.lambda_id == run.config.lambda_id
    with pytest.raises(ConfigError, match="storage must hold no credentials"):
        run_of(demo_config, "run.storage=s3://key:secret@bucket/runs")  # pragma: allowlist secret


def test_a_newer_artifact_that_was_not_carried_is_not_replaced_by_the_older(
    demo_config: Path, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = bucket.format("newer")
    where = (f"run.storage={uri}", f"run.mirror={tmp_path}/m")
    first = run_of(demo_config, *where)
    first.write_lambda()
    STAGES["prepare"](first)
    changed = run_of(demo_config, *where, "data.limit=20")
    with monkeypatch.context() as patch:
        patch.setattr(ObjectStore, "open", refuse_reading)
        with pytest.raises(OSError, match="connection reset"):
            STAGES["prepare"](changed)
    newer = changed.path("pairs", "manifest.json").read_bytes()
    again = run_of(demo_config, *where, "data.limit=20")
    again.fetch()
    assert again.path("pairs", "manifest.json").read_bytes() == newer
    assert again.store is not None
    with again.store.open("pairs/manifest.json") as there:
        assert there.read() == newer
    assert not list(tmp_path.rglob(".*.unsent"))
    other = run_of(demo_config, f"run.storage={uri}", f"run.mirror={tmp_path}/other")
    with again.locked():
        again.fetch_if_free()  # a command that only reads waits for nobody
    other.fetch_if_free()
    assert other.path("pairs", "manifest.json").read_bytes() == newer


def refuse_reading(self: ObjectStore, name: str) -> None:
    raise OSError("connection reset")


def test_what_is_cleaned_goes_from_the_store_too(
    demo_config: Path, bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(demo_config, f"run.storage={bucket.format('clean')}", f"run.mirror={tmp_path}/m")
    run.write_lambda()
    STAGES["prepare"](run)
    with run.publish(
        run.path("schedule"), Provenance("schedule", "k", "l", {"prepare": "other pairs"})
    ) as draft:
        (draft.path / "schedule.csv").write_text("prompt_id\n")
    assert run.store is not None
    assert {"schedule/manifest.json", "schedule/schedule.csv"} <= set(run.store.files(""))
    copy = tmp_path / "copy"  # of a run that lives elsewhere
    shutil.copytree(run.folder, copy)
    clean(copy, stale=True, apply=True)
    assert not (copy / "schedule").exists()
    assert "is not its mirror" in capsys.readouterr().err
    assert "schedule/manifest.json" in run.store.files("")

    (row,) = clean(run.folder, stale=True)["could_go"]
    assert row["path"] == "schedule"
    assert clean(run.folder, stale=True, apply=True)["removed"] == [row]
    assert "schedule is removed from s3://pairs/clean/test too" in capsys.readouterr().err
    left = set(run.store.files(""))
    assert not [name for name in left if name.startswith("schedule/")]
    assert {"lambda.json", "pairs/manifest.json", "pairs/train.parquet"} <= left
    run.fetch()
    assert not run.path("schedule").exists()
