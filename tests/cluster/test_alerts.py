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
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed"
)
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


def promtool(*arguments: str) -> None:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_prometheus_takes_the_file() -> None:
    promtool("check", "rules", str(FILE))


@needs_promtool
def test_prometheus_takes_its_configuration() -> None:
    promtool("check", "config", "--syntax-only", str(FILE.with_name("prometheus.yaml")))


def test_prometheus_reads_the_alerts_and_rays_list_of_nodes() -> None:
    from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE

    config = yaml.safe_load(FILE.with_name("prometheus.yaml").read_text())
    assert config["rule_files"] == [FILE.name]
    (job,) = config["scrape_configs"]
    assert job["file_sd_configs"] == [{"files": [f"/tmp/ray/{PROMETHEUS_SERVICE_DISCOVERY_FILE}"]}]


@needs_promtool
@pytest.mark.parametrize(
    ("calls", "stalled"),
    [
        (None, True),  # not one was ever settled
        ("5x60", True),
        ("0+1x60", False),
        ("100x60", False),  # all of them
    ],
)
def test_annotation_that_stands_still_is_told(
    calls: str | None, stalled: bool, tmp_path: Path
) -> None:
    (stall,) = (rule for rule in RULES if rule["alert"] == "Sp2dpoAnnotationStalled")
    series = [{"series": 'ray_sp2dpo_annotation_calls_expected{teacher="a"}', "values": "100x60"}]
    if calls:
        name = 'ray_sp2dpo_annotation_calls_total{teacher="a",outcome="ok"}'
        series.append({"series": name, "values": calls})
    told = {name: text.replace("{{ $labels.teacher }}", "a")
            for name, text in stall["annotations"].items()}  # fmt: skip
    alert = {"exp_labels": {"teacher": "a", **stall["labels"]}, "exp_annotations": told}
    (tmp_path / "test.yaml").write_text(
        yaml.safe_dump(
            {
                "rule_files": [str(FILE)],
                "evaluation_interval": "1m",
                "tests": [
                    {
                        "interval": "1m",
                        "input_series": series,
                        "alert_rule_test": [
                            {
                                "eval_time": "40m",
                                "alertname": stall["alert"],
                                "exp_alerts": [alert] if stalled else [],
                            }
                        ],
                    }
                ],
            }
        )
    )
    promtool("test", "rules", str(tmp_path / "test.yaml"))
