"""Training on a real Ray when something breaks: workers, nodes, disks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from sp2dpo_ray.errors import Stopped, WorkerLost
from sp2dpo_ray.stages.train import train
from tests.processes import actors_called
from tests.train.test_training import metric_rows, prepared

pytestmark = [pytest.mark.ray, pytest.mark.slow]
WORKER = "RayTrainWorker"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "merged" / "model.safetensors")


@pytest.mark.parametrize(
    "options", [(), ("train.strategy=zero3", "student.lora=null")], ids=["ddp", "zero3-full"]
)
def test_a_worker_killed_in_mid_epoch_changes_no_bit(
    ray_cluster: None, demo_config: Path, options: tuple[str, ...]
) -> None:
    overrides = ("train.epochs=12", "train.save_steps=5", "train.max_failures=1", *options)
    total = 48
    run = prepared(demo_config, *overrides)
    folder = run.path("train", "jmamp")
    killed: list[int] = []

    def kill() -> None:
        while not list(folder.rglob("part-0.json")):
            time.sleep(0.01)
        killed.append(max(worker.pid for worker in actors_called(WORKER)))
        psutil.Process(killed[0]).kill()

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    summary = train(run, "jmamp")
    killer.join(1)
    assert killed
    assert summary["steps"] == total
    assert [row["step"] for row in metric_rows(folder)] == list(range(1, total + 1))
    disturbed, losses = weights(folder), [row["loss"] for row in metric_rows(folder)]
    assert losses[-1] != losses[0]
    assert (folder / "adapter").exists() is ("student.lora=null" not in options)

    (folder / "manifest.json").unlink()
    train(run, "jmamp")
    assert [row["loss"] for row in metric_rows(folder)] == losses
    for name, weight in weights(folder).items():
        assert torch.equal(weight, disturbed[name]), name


def test_a_lost_worker_is_no_failure_of_its_arm(ray_cluster: None, demo_config: Path) -> None:
    """None may be lost, so the command ends; the same one goes on."""
    run = prepared(demo_config, "train.epochs=12", "train.save_steps=5")
    folder = run.path("train", "jmamp")

    def kill() -> None:
        while not list(folder.rglob("checkpoint_manager_snapshot.json")):
            time.sleep(0.01)
        psutil.Process(max(worker.pid for worker in actors_called(WORKER))).kill()

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    with pytest.raises(WorkerLost, match="The same command goes on") as lost:
        train(run, "jmamp")
    killer.join(1)
    assert lost.value.exit_code == 4
    before = len(metric_rows(folder))
    assert 0 < before < 48
    assert train(run, "jmamp")["steps"] == 48
    assert [row["step"] for row in metric_rows(folder)] == list(range(1, 49))


def test_a_lost_node_leaves_fewer_workers_and_the_same_training(
    ray_cluster: None, demo_config: Path
) -> None:
    """Elastic: two workers, then the one that is left; the gradient knows no number of workers."""
    overrides = ("train.epochs=12", "train.save_steps=5", "student.lora.dropout=0")
    calm = prepared(demo_config, *overrides, "run.name=calm")
    train(calm, "jmamp")
    losses = [row["loss"] for row in metric_rows(calm.path("train", "jmamp"))]
    run = prepared(demo_config, *overrides)
    elastic = (*overrides, "train.workers=[1, 2]", "train.max_failures=1")
    found = subprocess.run(
        [sys.executable, "-m", "tests.train.node_loss", str(demo_config), *elastic],
        capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    summary = json.loads(found.stdout)
    assert summary["killed"] == 1, found.stderr[-3000:]
    rows = metric_rows(run.path("train", "jmamp"))
    assert [row["step"] for row in rows] == list(range(1, len(losses) + 1))
    assert [row["loss"] for row in rows] == pytest.approx(losses, rel=1e-4)


def test_a_spot_notice_saves_at_once(ray_cluster: None, demo_config: Path) -> None:
    """No checkpoint is due; the only one there can be is the notice's, and training goes on from
    it."""
    overrides = ("train.epochs=120", "train.save_steps=100000", "student.lora.dropout=0",
                 "train.notice_steps=2", "train.workers=[1, 2]")  # fmt: skip
    run = prepared(demo_config, *overrides)
    found = subprocess.run(
        [sys.executable, "-m", "tests.train.node_loss", "--notice", str(demo_config), *overrides],
        capture_output=True, text=True, timeout=500,
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    summary = json.loads(found.stdout)
    assert summary["killed"] == 1
    assert summary["saved"] % 2 == 0
    assert 4 <= summary["saved"] < summary["steps"]
    assert summary["fewest"] >= summary["saved"]  # none of the steps before it was done again
    rows = metric_rows(run.path("train", "jmamp"))
    assert [row["step"] for row in rows] == list(range(1, summary["steps"] + 1))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 8 MB where this machine lets us mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)],
                             capture_output=True)  # fmt: skip
    if mounted.returncode:
        pytest.skip("needs the right to mount a file system")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_stops_resumably(
    ray_cluster: None, demo_config: Path, small_disk: Path
) -> None:
    overrides = (f"run.storage={small_disk}", "train.save_steps=2", "train.epochs=2")
    run = prepared(demo_config, *overrides)
    filler = small_disk / "filler"
    free = psutil.disk_usage(str(small_disk)).free
    filler.write_bytes(bytes(free - (64 << 10)))
    with pytest.raises(Stopped, match="no disk space left") as stopped:
        train(run, "jmamp")
    assert stopped.value.exit_code == 4
    assert not run.path("train", "jmamp", "manifest.json").exists()
    filler.unlink()
    assert train(run, "jmamp")["steps"] == 8
    rows = metric_rows(run.path("train", "jmamp"))
    assert [row["step"] for row in rows] == list(range(1, 9))
