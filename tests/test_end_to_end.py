"""The whole method: as a submitted job on the demo pairs, and on real pairs where present."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from sp2dpo_ray.core.artifact import open_artifact
from tests.browsing import Opened, chromium
from tests.conftest import REPOSITORY
from tests.processes import kill_tree

BIN = Path(sys.executable).parent
# Ray's own guard: head and clients share a token, and nobody else gets in
AUTHENTICATED = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def ray_head() -> Iterator[str]:
    """A Ray head with a job server, apart from any other Ray of this machine; its address."""
    ports = {name: free_port() for name in ("gcs", "jobs", "agent", "grpc", "client")}
    # an address of a Unix socket holds 107 characters, so the folder's name must be short
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:
        head = subprocess.Popen(
            [str(BIN / "ray"), "start", "--head", "--block", f"--port={ports['gcs']}",
             f"--dashboard-port={ports['jobs']}", "--dashboard-host=127.0.0.1",
             f"--dashboard-agent-listen-port={ports['agent']}",
             f"--dashboard-agent-grpc-port={ports['grpc']}",
             f"--ray-client-server-port={ports['client']}", "--num-cpus=2",
             f"--object-store-memory={400 << 20}", "--disable-usage-stats",
             f"--temp-dir={folder}"],
            env=os.environ | AUTHENTICATED | {"PATH": f"{BIN}:{os.environ['PATH']}"},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            yield f"http://127.0.0.1:{ports['jobs']}"
        finally:
            kill_tree(head.pid)


@pytest.mark.ray
@pytest.mark.slow
def test_a_submitted_job_leaves_every_artifact(ray_head: str, demo_config: Path) -> None:
    entry = ["python", "jobs/run.py", str(demo_config), "--json"]
    submit = [str(BIN / "ray"), "job", "submit", "--address", ray_head,
              "--working-dir", str(REPOSITORY), "--", *entry]  # fmt: skip
    deadline = time.monotonic() + 60
    while True:  # the job server needs a moment
        done = subprocess.run(
            submit, capture_output=True, text=True, timeout=400, env=os.environ | AUTHENTICATED
        )
        if done.returncode == 0 or time.monotonic() > deadline:
            break
        assert "Failed to connect" in done.stdout + done.stderr, done.stdout + done.stderr
        time.sleep(2)
    assert done.returncode == 0, done.stdout + done.stderr
    run = demo_config.parent / "runs" / "test"
    for name in ("pairs", "student", "annotations", "schedule", "train/jmamp", "train/dpo-0.1",
                 "report"):  # fmt: skip
        open_artifact(run / name)
    line = next(line for line in done.stdout.splitlines() if line.startswith('{"prepare"'))
    summary = json.loads(line)
    assert summary["schedule"]["columns"] == 2 + 6 * 5 + 2 * 4 + 4 + 1
    assert summary["train"]["jmamp"]["pairs"] == summary["schedule"]["pairs"] == 28
    record = json.loads((run / "lambda.json").read_text())
    assert open_artifact(run / "schedule").lambda_id == record["lambda_id"]


@pytest.mark.ray
@pytest.mark.slow
def test_a_ray_that_somebody_else_started_is_left_alone(ray_head: str, demo_config: Path) -> None:
    with socket.socket() as probe:
        deadline = time.monotonic() + 60
        while probe.connect_ex(("127.0.0.1", int(ray_head.rpartition(":")[2]))):
            assert time.monotonic() < deadline, "the head did not start"
            time.sleep(0.5)
    for stage in ("prepare", "annotate"):
        done = subprocess.run(
            [str(BIN / "sp2dpo"), stage, str(demo_config)], capture_output=True, text=True,
            timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.browser
def test_real_pairs_end_with_a_schedule_three_arms_and_a_page(
    real_data: Path, tmp_path: Path
) -> None:
    """256 real pairs and 512 for evaluation, through the demo's configuration."""
    overrides = [
        f"run.storage={tmp_path}", "run.name=real", "data.limit=256", "data.eval_limit=512",
        f"data.source={real_data}/pairs_train_2k.parquet",
        f"data.eval_source={real_data}/pairs_eval_512.parquet", "train.epochs=1",
        "student.tiny.steps=60",
    ]  # fmt: skip
    done = subprocess.run(
        [str(BIN / "sp2dpo"), "run", "configs/demo.yaml", "--json",
         *(argument for override in overrides for argument in ("--set", override))],
        capture_output=True, text=True, timeout=590, cwd=REPOSITORY,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    print(done.stderr)
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["prepare"]["pairs"] == 256
    assert summary["prepare"]["eval_pairs"] == 512
    assert summary["schedule"]["columns"] == 64
    run = tmp_path / "real"
    schedule = pq.read_table(run / "schedule" / "schedule.parquet")
    assert schedule.num_rows == 256
    beta = schedule["beta_annotators_mean_ens"].to_numpy()
    assert 0.03 <= beta.min() < beta.max() <= 0.3
    for arm in ("jmamp", "dpo:0.1", "random"):
        scored = summary["train"][arm]
        assert scored["pairs"] == 256
        assert scored["eval"]["pairs"] == 512
        assert scored["steps"] == 16
        assert abs(scored["loss"] - math.log(2)) > 1e-4  # it moved
        assert abs(scored["eval"]["margin"]) > 1e-3
    assert [row["arm"] for row in summary["report"]["arms"]] == ["dpo:0.1", "jmamp", "random"]
    with chromium() as browser:
        page = Opened(browser, run / "report" / "index.html")
        page.until("of 256")
        assert page.charts() >= 15
        assert page.said == []
