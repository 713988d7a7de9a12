"""How much a cluster has room for: one that grows when it is asked, and one that cannot."""

from __future__ import annotations

import pytest

from sp2dpo_ray import room as module
from sp2dpo_ray.room import HEAD, room


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


def test_nodes_that_come_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    present = {"CPU": 0.0}
    monkeypatch.setattr(module, "LOOK_S", 0.01)
    monkeypatch.setattr(module.ray, "nodes", lambda: [{"Alive": True, "Resources": {HEAD: 1.0}}])
    monkeypatch.setattr(module.ray, "cluster_resources", lambda: dict(present))
    monkeypatch.setattr(
        module, "request_resources", lambda bundles: present.update(CPU=4.0) if bundles else None
    )
    assert room([{"CPU": 1.0}] * 3, wait_s=60.0) == {"CPU": 4.0}
