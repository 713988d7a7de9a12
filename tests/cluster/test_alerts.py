"""Alerts: metrics that exist, pages of the runbook that exist, and Prometheus' own check."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FILE = ROOT / "cluster" / "prometheus" / "alerts.yaml"
RULES = [rule for group in yaml.safe_load(FILE.read_text())["groups"] for rule in group["rules"]]
CODE = "\n".join(path.read_text() for path in (ROOT / "sp2dpo_ray").rglob("*.py"))
each = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])


def anchors(text: str) -> set[str]:
    """As GitHub and mkdocs make them of headings."""
    heads = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


@each
def test_it_asks_for_metrics_that_are_exported(rule: dict[str, str]) -> None:
    names = set(re.findall(r"\bray_(sp2dpo\w+)", rule["expr"]))
    assert names
    for name in names:
        assert f'"{name}"' in CODE


@each
def test_it_names_a_page_of_the_runbook_and_what_it_saw(rule: dict[str, dict[str, str]]) -> None:
    place, _, anchor = rule["annotations"]["runbook"].partition("#")
    assert anchor in anchors((ROOT / place).read_text())
    assert "$labels" in rule["annotations"]["summary"] or "$value" in rule["annotations"]["summary"]
    assert rule["labels"]["severity"] in ("page", "ticket")


@each
def test_outcomes_are_ours(rule: dict[str, str]) -> None:
    from sp2dpo_ray.core.annotation import Outcome

    for words in re.findall(r'outcome\S*?"([^"]+)"', rule["expr"]):
        assert set(words.split("|")) <= {*map(str, Outcome), "reused"}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_prometheus_takes_the_file() -> None:
    done = subprocess.run(["promtool", "check", "rules", str(FILE)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
