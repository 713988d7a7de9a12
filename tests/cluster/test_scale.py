"""The simulation of docs/scaling.md: what lost nodes cost in it, against arithmetic."""

from __future__ import annotations

import pytest

from benchmarks.scale import Annotation, Teacher, World

HOUR = 3600


def test_lost_nodes_cost_their_absence_and_their_calls_in_flight() -> None:
    """The cores are the limit: a node that is away for a tenth of its time does nine tenths. Chunks
    that take hours, as of a large run, must not hide that."""
    fast = (Teacher(None, 1.5, 10_000, 0.0),)
    world = World(10**8, fast, nodes=2, cpu_ms=1.0, lost_h=9.0, back_s=HOUR)
    found = Annotation(world).run()
    away = 1 / 10
    hours = 3 * 10**8 / (4 * 1000 * (1 - away)) / HOUR
    assert found["hours"] == pytest.approx(hours, rel=0.05)
    assert found["losses"] == pytest.approx(2 * hours / 10, rel=0.5)
    assert found["twice"] == found["losses"] * 2 * 1500  # two actors, a thousand a second, 1.5 s


def test_fewer_nodes_lost_cost_less_and_none_cost_nothing() -> None:
    world = World(10**6, (Teacher(None, 1.5, 10_000, 0.0),), cpu_ms=1.0)
    found = Annotation(world).run()
    assert (found["losses"], found["twice"]) == (0, 0)
    assert found["rate"] == pytest.approx(2000, rel=0.01)
