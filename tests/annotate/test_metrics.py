"""What Ray's metrics endpoint shows: scraped from a real one, as Prometheus would."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.ray

CALLS = re.compile(r"(ray_)?sp2dpo_annotation_calls_total\{.*teacher=\"(\w+)\".*\} (\S+)")
SCRIPT = """
import sys, time, urllib.request
import ray
from sp2dpo_ray.config import load_config
from sp2dpo_ray.run import Run
from sp2dpo_ray.stages import STAGES

ray.init(num_cpus=2, logging_level="ERROR", log_to_driver=False, _metrics_export_port=0,
         object_store_memory=200 << 20)
(node,) = ray.nodes()
run = Run(load_config(sys.argv[1], ("data.limit=4", "data.eval_fraction=0")))
STAGES["prepare"](run)
STAGES["annotate"](run)
text, deadline = "", time.time() + 60
names = ("calls_total", "attempts_total", "calls_expected")
while not all(name in text for name in names) and time.time() < deadline:
    time.sleep(2)
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    text = urllib.request.urlopen(address).read().decode()
print("\\n".join(line for line in text.splitlines() if "sp2dpo" in line and line[0] != "#"))
"""


def test_calls_and_expectations_are_exported_by_teacher(demo_config: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(demo_config)],
        capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    calls = {
        match[2]: float(match[3])
        for line in done.stdout.splitlines()
        if (match := CALLS.match(line))
    }
    assert calls.keys() <= {"alba", "bruno"}
    assert calls
    assert "sp2dpo_annotation_calls_expected" in done.stdout
    assert 'outcome="ok"' in done.stdout
    assert "sp2dpo_annotation_attempts_total" in done.stdout
