"""Sweeps on a real Ray: several arms at once, kills, failures, nothing trained twice."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from sp2dpo_ray.config import TrainSection, load_config
from sp2dpo_ray.core.artifact import open_artifact
from sp2dpo_ray.errors import ConfigError, TrainingError, WorkerLost
from sp2dpo_ray.run import Run
from sp2dpo_ray.stages import STAGES
from sp2dpo_ray.tune.trials import Outcome, room_for, run_trials
from tests.processes import kill_when
from tests.train.test_training import prepared

pytestmark = pytest.mark.ray
NARROW = ("train.workers=1", "sweep.arms=['dpo:0.1', jmamp, random]")


def sealed(run: Run) -> dict[str, float]:
    """Finished arms, and when."""
    found = run.path("train").glob("*/manifest.json")
    return {path.parent.name: path.stat().st_mtime_ns for path in found}


@pytest.mark.slow
def test_a_killed_sweep_repeats_no_finished_arm(ray_cluster: None, demo_config: Path) -> None:
    run = prepared(demo_config, *NARROW)
    flags = [part for each in NARROW for part in ("--set", each)]
    kill_when(lambda: sealed(run), ["sweep", str(demo_config), *flags], within_s=180)
    before = sealed(run)
    assert before
    assert not run.path("sweep").exists()

    summary = STAGES["sweep"](run)
    assert summary["trained"] == 3 - len(before)
    assert (summary["arms"], summary["failed"]) == (3, 0)
    assert {name: sealed(run)[name] for name in before} == before
    assert len(list(run.path("reference").iterdir())) == 1  # one pass for all arms

    rows = {row["arm"]: row for row in summary["table"]}
    assert list(rows) == ["dpo:0.1", *(arm for arm in ("jmamp", "random"))]
    assert summary["baseline"] == "dpo:0.1"
    assert summary["best"] in rows
    held_out = pq.read_table(run.path("train", "jmamp", "eval_pairs.parquet")).num_rows
    assert {row["pairs"] for row in rows.values()} == {held_out - held_out // 2}
    text = run.path("sweep", "table.md").read_text()
    assert all(f"| {arm} | 1 |" in text for arm in rows)

    table = run.path("sweep", "table.json").read_bytes()
    again = STAGES["sweep"](run)
    assert (again["trained"], again["reused"]) == (0, True)
    assert run.path("sweep", "table.json").read_bytes() == table
    open_artifact(run.path("sweep"))


@pytest.mark.slow
def test_an_arm_that_diverges_is_kept_as_failed_and_the_others_go_on(
    ray_cluster: None, demo_config: Path
) -> None:
    endless = f"dpo:1{'0' * 39}"  # beyond float32
    arms = f"sweep.arms=['dpo:0.1', '{endless}']"
    run = prepared(demo_config, "train.workers=1", arms, "sweep.seeds=[0, 1]")
    summary = STAGES["sweep"](run)
    assert (summary["arms"], summary["failed"], summary["trained"]) == (4, 2, 4)
    (row,) = summary["table"]
    assert (row["arm"], row["seeds"]) == ("dpo:0.1", 2)
    trials = json.loads(run.path("sweep", "trials.json").read_text())["arms"]
    assert [trial["state"] for trial in trials] == ["finished", "finished", "failed", "failed"]
    assert "not finite" in trials[2]["reason"]
    seeds = [
        pq.read_table(run.path("train", f"dpo-0.1@{seed}", "eval_pairs.parquet"))["margin"]
        for seed in (0, 1)
    ]
    assert seeds[0] != seeds[1]

    lost = Run(load_config(str(demo_config), ("train.workers=1", f"sweep.arms=['{endless}']")))
    with pytest.raises(TrainingError, match=r"no arm of the sweep finished.*not finite"):
        STAGES["sweep"](lost)


def trials(tmp_path: Path, work: Any, arms: list[str]) -> list[Outcome]:
    return run_trials(arms, work, at_once=2, folder=tmp_path / "records", watch=lambda: None)


def test_what_concerns_all_arms_stops_the_sweep(ray_cluster: None, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    begun.mkdir()

    def work(arm: str) -> None:
        (begun / arm).touch()
        if arm == "b":
            raise ConfigError("train.trackers: wandb is not installed")
        time.sleep(2)

    with pytest.raises(ConfigError, match=r"arm b: train\.trackers: wandb is not installed"):
        trials(tmp_path, work, ["a", "b", "c", "d", "e", "f"])
    assert len(list(begun.iterdir())) < 6


def test_a_trial_that_is_lost_begins_again_and_tune_keeps_quiet(
    ray_cluster: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def work(arm: str) -> None:
        marker = tmp_path / f"{arm}.begun"
        if arm == "a" and not marker.exists():
            marker.touch()
            os._exit(1)  # as when its node is gone
        if arm == "b" and not marker.exists():
            marker.touch()
            raise WorkerLost("a node of its workers is gone")

    assert trials(tmp_path, work, ["a", "b"]) == [
        Outcome("a", "finished"), Outcome("b", "finished")
    ]  # fmt: skip
    shown = capfd.readouterr()
    assert "Configuration for experiment" not in shown.out + shown.err


def test_the_cluster_decides_how_many_at_once(ray_cluster: None) -> None:
    options = TrainSection(workers=1, gpus_per_worker=0)
    assert room_for(options, None) == 2
    assert room_for(options, 1) == 1
    wide = options.model_copy(update={"workers": 3})
    with pytest.raises(ConfigError, match=r"one arm needs 3 CPUs.*the Ray cluster has 2"):
        room_for(wide, None)
