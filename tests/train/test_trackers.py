"""Trackers: the same figures in W&B and MLflow, one record a training, nothing unasked."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from sp2dpo_ray.config import LoraSection, TrainSection
from sp2dpo_ray.errors import ConfigError
from sp2dpo_ray.modeling.student import StudentRef
from sp2dpo_ray.train.metrics import MetricsLog
from sp2dpo_ray.train.task import TrainTask
from sp2dpo_ray.train.trackers import open_trackers


def task(folder: Path, *trackers: Any) -> TrainTask:
    options = TrainSection(trackers=trackers, learning_rate=2e-5)
    return TrainTask("demo", "jmamp", "0123" * 16, folder, folder, folder,
                     StudentRef("some/student", None, "f"), LoraSection(r=8), options)  # fmt: skip


def train(chosen: TrainTask, steps: range) -> None:
    log = MetricsLog(chosen.output / "metrics.jsonl", steps.start - 1, open_trackers(chosen))
    for step in steps:
        log.write({"step": step, "steps": 4, "loss": 1 / step, "rewards/margins": 0.5 * step})
    log.close()


def test_mlflow_has_one_record_of_a_resumed_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="needs mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    chosen = task(tmp_path, "mlflow")
    train(chosen, range(1, 3))
    train(chosen, range(3, 5))
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("demo")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "jmamp"
    assert run.info.status == "FINISHED"
    assert run.data.params["learning_rate"] == "2e-05"
    assert run.data.params["lora.r"] == "8"
    history = client.get_metric_history(run.info.run_id, "rewards/margins")
    assert [(point.step, point.value) for point in history] == [
        (1, 0.5), (2, 1.0), (3, 1.5), (4, 2.0)
    ]  # fmt: skip


def test_wandb_keeps_a_record_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="needs wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    train(task(tmp_path, "wandb"), range(1, 3))
    (record,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    content = record.read_bytes()
    for text in (b"rewards/margins", b"jmamp", b"some/student"):
        assert text in content


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_tracker_that_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: Any
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=f"train.trackers: {name} is not installed.*pip install"):
        open_trackers(task(tmp_path, name))


def test_unasked_nothing_is_tracked(tmp_path: Path) -> None:
    assert open_trackers(task(tmp_path)) == []
