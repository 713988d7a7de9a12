"""The Grafana board fits the code: it asks for metrics that exist."""

from __future__ import annotations

import itertools
import json
import re
from importlib import resources
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BOARD = json.loads((ROOT / "cluster" / "grafana" / "sp2dpo.json").read_text())
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
ASKED = {
    name
    for panel in PANELS
    for target in panel["targets"]
    for name in re.findall(r"\bray_(\w+)", target["expr"])
}
CODE = "\n".join(path.read_text() for path in (ROOT / "sp2dpo_ray").rglob("*.py"))


@pytest.mark.parametrize("name", sorted(ASKED))
def test_every_metric_of_the_board_is_exported(name: str) -> None:
    if name.startswith("sp2dpo"):
        assert f'"{name}"' in CODE
    else:  # Ray's own, by the agent of each node
        agent = resources.files("ray.dashboard.modules.reporter") / "reporter_agent.py"
        assert f'"{name}"' in agent.read_text()


def test_every_metric_of_ours_is_on_the_board() -> None:
    assert set(re.findall(r'"(sp2dpo_(?:train|annotation)_\w+)"', CODE)) <= ASKED


def test_panels_do_not_overlap_and_name_their_source() -> None:
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])
    places = [panel["gridPos"] for panel in BOARD["panels"]]
    for one, other in itertools.combinations(places, 2):
        assert (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
    for panel in PANELS:
        assert panel["datasource"]["uid"] == "${datasource}"
