"""How much a cluster has room for: one that a real autoscaler lets grow, and one that cannot."""

from __future__ import annotations

import subprocess
import sys

import pytest

from sp2dpo_ray import room as module
from sp2dpo_ray.room import HEAD, room

GROWING = """
import os, sys
from pathlib import Path
os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
import ray
from ray.cluster_utils import AutoscalingCluster

worker = {"resources": {"CPU": 2, "object_store_memory": 100 << 20}, "node_config": {},
          "min_workers": 0, "max_workers": 1}
cluster = AutoscalingCluster(head_resources={"CPU": 0}, worker_node_types={"worker": worker})
cluster.start()
try:
    ray.init("auto", logging_level="ERROR", log_to_driver=False)
    from sp2dpo_ray.room import grows, room
    before = ray.cluster_resources().get("CPU", 0)
    after = room([{"CPU": 1.0}] * 2, wait_s=120)["CPU"]
    print("found", grows(), before, after, room([{"CPU": 1.0}] * 3, wait_s=3)["CPU"])
finally:
    ray.shutdown()
    cluster.shutdown()
"""


@pytest.mark.ray
@pytest.mark.slow
def test_nodes_come_when_they_are_asked_for() -> None:
    done = subprocess.run(
        [sys.executable, "-c", GROWING], capture_output=True, text=True, timeout=300
    )
    assert "found True 0 2.0 2.0" in done.stdout, done.stdout[-2000:] + done.stderr[-2000:]
    assert "waiting for nodes with 2 CPUs" in done.stderr


@pytest.mark.parametrize(
    ("head", "asked"), [({"CPU": 2.0}, False), ({}, True)], ids=["fixed", "growing"]
)
def test_a_cluster_that_cannot_grow_is_answered_for_at_once(
    monkeypatch: pytest.MonkeyPatch, head: dict[str, float], asked: bool
) -> None:
    calls: list[list[dict[str, float]]] = []
    nodes = [{"Alive": True, "Resources": {HEAD: 1.0, **head}}]
    monkeypatch.setattr(module.ray, "nodes", lambda: nodes)
    monkeypatch.setattr(module.ray, "cluster_resources", lambda: {"CPU": 2.0, "GPU": 1.0})
    monkeypatch.setattr(module, "request_resources", lambda bundles: calls.append(bundles))
    assert room([{"CPU": 1.0, "GPU": 0.5}] * 2, wait_s=0.0) == {"CPU": 2.0, "GPU": 1.0}
    assert calls == []  # it is there
    wide = [{"CPU": 1.0, "GPU": 1.0}] * 2
    assert room(wide, wait_s=0.0)["GPU"] == 1.0
    assert calls == ([wide, []] if asked else [])  # asked for, and no longer
