"""Killed in the middle: the driver, an actor, a node. What is on record is never asked again."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from sp2dpo_ray.annotate.journal import Journal
from sp2dpo_ray.annotate.record import read_record
from sp2dpo_ray.core.annotation import SETTLED
from sp2dpo_ray.core.place import Folder
from tests.conftest import DEMO_PAIRS
from tests.fault_server import Server, serve
from tests.processes import actors_called, kill_tree, panel_actors

pytestmark = [pytest.mark.ray, pytest.mark.slow]
NAMES = {"qwen": "dashscope", "openai": "openai", "gemini": "gemini"}
JOB = ["data.limit=60", "data.eval_fraction=0"]
FAULTS = [500, 503, 429, "drop", "cut", "garbage", "truncated"]


def panel(server: Server, in_flight: int) -> list[str]:
    sections = [
        f"{{name: {name}, provider: {provider}, model: m-{name}, api_key_env: TEST_KEY, "
        f"base_url: '{server.url_of(provider)}', limits: {{in_flight: {in_flight}}}, "
        "price: {input: 1, output: 2, as_of: 2026-01-01}}"
        for name, provider in NAMES.items()
    ]
    return [f"teachers=[{', '.join(sections)}]", "decoding.retry_base_s=0.05",
            "decoding.timeout_s=10"]  # fmt: skip


def start(config: Path, stage: str, overrides: list[str]) -> subprocess.Popen[str]:
    flags = [part for each in overrides for part in ("--set", each)]
    return subprocess.Popen(
        [sys.executable, "-m", "sp2dpo_ray", stage, str(config), "--json", *flags],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    summary: dict[str, Any] = json.loads(out.splitlines()[-1])
    return summary


def recorded(journal: Path) -> set[str]:
    """Keys of the settled calls on record."""
    entries = Journal(Folder(journal)).new_entries()
    return {e["key"] for e in entries if e["kind"] == "result" and e["outcome"] in SETTLED}


def wait_for(server: Server, requests: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while sum(server.asked.values()) < requests:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, f"only {sum(server.asked.values())} requests"
        time.sleep(0.02)


def intents(journal: Path) -> Counter[str]:
    entries = Journal(Folder(journal)).new_entries()
    return Counter(entry["key"] for entry in entries if entry["kind"] == "intent")


def asked_after_an_answer(journal: Path) -> list[str]:
    """Keys of calls that were asked although an answer was on record by then."""
    answered: dict[str, float] = {}
    entries = list(Journal(Folder(journal)).new_entries())
    for entry in entries:
        if entry["kind"] == "result" and entry["outcome"] in SETTLED:
            first = answered.get(entry["key"], entry["time"])
            answered[entry["key"]] = min(first, entry["time"])
    return [
        entry["key"]
        for entry in entries
        if entry["kind"] == "intent" and entry["time"] > answered.get(entry["key"], float("inf"))
    ]


def test_real_pairs_and_nine_calls_each_end_complete_after_two_kills(
    real_data: Path, demo_config: Path
) -> None:
    """2,048 pairs, three SDKs, faults in between, SIGKILL twice; then a complete schedule."""
    lock, seen = threading.Lock(), Counter[str]()

    def plan(body: dict[str, Any]) -> str | int:
        with lock:
            seen["calls"] += 1
            number = seen["calls"]
        return FAULTS[number % len(FAULTS)] if number % 50 == 0 else "ok"

    with serve(plan, latency_s=0.02, keep=False) as server:
        overrides = [*panel(server, 64), "data.eval_fraction=0", "data.limit=null",
                     f"data.source={real_data}/pairs_train_2k.parquet"]  # fmt: skip
        pairs = finish(start(demo_config, "prepare", overrides))["pairs"]
        calls = 9 * pairs
        journal = demo_config.parent / "runs" / "test" / "journal"
        for kill_at in (calls // 4, calls // 2):
            process = start(demo_config, "annotate", overrides)
            wait_for(server, kill_at, process)
            kill_tree(process.pid)
            process.wait()
            before = recorded(journal)
            counts = intents(journal)
            server.asked.clear()
            seen["killed"] += 1
            server.asked.update({"": kill_at})  # what was asked so far, for the next wait
            assert len(before) > kill_at // 2
        summary = finish(start(demo_config, "annotate", overrides))
        schedule = finish(start(demo_config, "schedule", overrides))
    assert summary["outcomes"] == {"ok": calls}
    assert summary["pairs_complete"] == pairs == schedule["pairs"]
    assert schedule["excluded"] == 0
    after = intents(journal)
    again = {key: after[key] - counts[key] for key in before if after[key] > counts[key]}
    assert again == {}  # no call with a recorded result was asked once more
    assert seen["killed"] == 2


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The annotations of the job that the next tests disturb, when nothing happens to it."""
    config = tmp_path_factory.mktemp("calm") / "config.yaml"
    config.write_text(f"data: {{source: {DEMO_PAIRS}}}\nteachers: []\n")
    with serve(keep=False) as server:
        overrides = [*panel(server, 8), *JOB, f"run.storage={config.parent}/runs", "run.name=test"]
        finish(start(config, "prepare", overrides))
        finish(start(config, "annotate", overrides))
    return annotations(config)


def annotations(config: Path) -> bytes:
    return (config.parent / "runs" / "test" / "annotations" / "annotations.parquet").read_bytes()


def test_killed_actors_come_back_and_the_table_is_the_same_to_the_byte(
    demo_config: Path, undisturbed: bytes
) -> None:
    """One that asks, and those that keep the limits and the budget: none forgets anything."""
    with serve(latency_s=0.1, keep=False) as server:
        overrides = [*panel(server, 8), *JOB, "budget.usd=100"]
        finish(start(demo_config, "prepare", overrides))
        process = start(demo_config, "annotate", overrides)
        wait_for(server, 150, process)
        limiter = actors_called("ray::Limiter", process.pid)[0]
        (coordinator,) = actors_called("ray::Coordinator", process.pid)
        for victim in (panel_actors(process.pid)[0], limiter, coordinator):
            victim.kill()
            victim.wait(10)
        summary = finish(process)
        journal = demo_config.parent / "runs" / "test" / "journal"
        assert summary["outcomes"] == {"ok": 540}
        assert asked_after_an_answer(journal) == []
        assert sum(intents(journal).values()) <= 540 + 3 * 8  # what was in flight, at most
        # the budget, through its own restart, still knows all money that may have been spent
        spent = read_record(Journal(Folder(journal)).new_entries()).usd
        assert summary["cost_usd"] <= spent
        state = json.loads((journal / "budget.json").read_text())
        assert state["spent"] + state["reserved"] >= spent - 1e-9
        assert annotations(demo_config) == undisturbed


def test_a_lost_node_loses_nothing(demo_config: Path, undisturbed: bytes) -> None:
    with serve(latency_s=0.1, keep=False) as server:
        overrides = [*panel(server, 8), *JOB]
        script = [sys.executable, "-m", "tests.annotate.node_loss", str(demo_config), *overrides]
        environment = os.environ | {"RAY_BACKEND_LOG_LEVEL": "fatal"}
        process = subprocess.Popen(
            script, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
            start_new_session=True,
        )  # fmt: skip
        try:
            summary = finish(process)
        finally:
            with contextlib.suppress(Exception):
                kill_tree(process.pid)
        assert summary["killed"] >= 1
        assert summary["outcomes"] == {"ok": 540}
        journal = demo_config.parent / "runs" / "test" / "journal"
        assert asked_after_an_answer(journal) == []
        assert sum(intents(journal).values()) <= 540 + 3 * 8
        assert annotations(demo_config) == undisturbed
