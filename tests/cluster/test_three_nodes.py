"""The demo as jobs of a locked cluster of three nodes, one of which is lost in every stage."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from sp2dpo_ray.core.artifact import open_artifact
from tests.cluster.conftest import ThreeNodes, ended

pytestmark = [pytest.mark.ray, pytest.mark.slow]
ANSWER = json.dumps(
    {"semantic_gap_category": "Style", "semantic_gap_magnitude": 0.4, "semantic_gap_confidence": 1}
)


@pytest.fixture
def three_config(demo_config: Path) -> Path:
    """Teachers slow enough, and a training long enough, to be interrupted."""
    text = demo_config.read_text()
    slow = json.dumps({
        "name": "slow", "provider": "scripted", "model": "script", "limits": {"in_flight": 4},
        "options": {"default": ANSWER, "latency_s": 0.15},
    })  # fmt: skip
    text = text.replace("limit: 40", "limit: 130").replace("student:\n", f"  - {slow}\nstudent:\n")
    text = text.replace("workers: 2,", "workers: 2, epochs: 4, save_steps: 4, max_failures: 3,")
    demo_config.write_text(text)
    return demo_config


def losses(run: Path) -> list[tuple[str, Callable[[], bool]]]:
    """Which actors' nodes are lost, and when: each in the middle of its stage."""

    def recorded() -> bool:
        lines = (path.read_bytes().count(b"\n") for path in run.glob("journal/slow/*.jsonl"))
        return sum(lines) > 60

    return [
        ("PanelActor", recorded),
        ("ReferenceActor", lambda: True),
        ("RayTrainWorker",
         lambda: bool(list(run.glob("train/jmamp/checkpoints/**/part-0.json")))),
    ]  # fmt: skip


def test_a_node_is_lost_in_every_stage_and_nothing_else_is(
    cluster: ThreeNodes, three_config: Path
) -> None:
    submit = ("submit", "run", str(three_config), "--address", cluster.url, "--json",
              "--working-dir", str(three_config.parent),
              "--set", 'sweep.arms=["jmamp"]')  # fmt: skip
    calm = ended(cluster.sp2dpo(*submit, "--set", "run.name=calm"))
    runs = three_config.parent / "runs"
    assert (calm["status"], calm["folder"]) == ("SUCCEEDED", str(runs / "calm"))

    job = cluster.sp2dpo(*submit, "--set", "run.name=lost")
    lost = []
    for actor, ready in losses(runs / "lost"):
        while job.poll() is None:
            if ready() and (node := cluster.lose(actor)):
                lost.append(node)
                break
            time.sleep(0.1)
    told = ended(job)
    assert len(set(lost)) == 3, "a stage was over before a node could be lost"

    summary, undisturbed = json.loads(told["last"]), json.loads(calm["last"])
    assert summary["annotate"]["outcomes"] == undisturbed["annotate"]["outcomes"]
    assert summary["train"]["jmamp"]["steps"] == undisturbed["train"]["jmamp"]["steps"]
    for name in ("schedule/schedule.parquet", "reference/*/reference.parquet"):
        (one,), (other,) = (list((runs / base).glob(name)) for base in ("lost", "calm"))
        assert one.read_bytes() == other.read_bytes(), name
    rows, calm_rows = (
        [json.loads(line)
         for line in (runs / base / "train/jmamp/metrics.jsonl").read_text().splitlines()]
        for base in ("lost", "calm")
    )  # fmt: skip
    assert [row["step"] for row in rows] == [row["step"] for row in calm_rows]
    assert [row["loss"] for row in rows] == [row["loss"] for row in calm_rows]

    listed = [
        job
        for job in ended(cluster.sp2dpo("jobs", "list", *submit[3:5], "--json"))["jobs"]
        if job["run"] in ("calm", "lost")  # other tests have handed in jobs too
    ]
    assert [job["status"] for job in listed] == ["SUCCEEDED"] * 2
    assert {job["lambda_id"] for job in listed} == {open_artifact(runs / "lost/schedule").lambda_id}


def test_the_door_stays_shut(cluster: ThreeNodes, three_config: Path) -> None:
    submit = ("submit", "prepare", str(three_config), "--address", cluster.url,
              "--working-dir", str(three_config.parent))  # fmt: skip
    assert requests.get(f"{cluster.url}/api/jobs/", timeout=20).status_code == 401
    wrong = cluster.sp2dpo(*submit, RAY_AUTH_TOKEN="f" * 64)
    said = wrong.communicate(timeout=120)[1]
    assert wrong.returncode == 2, said
    assert "does not take the token that is found here" in said
    assert cluster.token not in said
    nobody = cluster.sp2dpo(*submit, RAY_AUTH_TOKEN="", HOME=str(three_config.parent))
    said = nobody.communicate(timeout=120)[1]
    assert nobody.returncode == 2, said
    assert "does not take the token" in said


def test_a_job_is_followed_found_again_and_stopped(cluster: ThreeNodes, three_config: Path) -> None:
    at = ("--address", cluster.url)
    submit = ("submit", "annotate", str(three_config), *at, "--json",
              "--working-dir", str(three_config.parent))  # fmt: skip
    ended(cluster.sp2dpo("submit", "prepare", *submit[2:]))
    first = ended(cluster.sp2dpo(*submit, "--detach"))
    assert first["new"] is True
    again = cluster.sp2dpo(*submit)
    journal = three_config.parent / "runs" / "test" / "journal"
    deadline = time.monotonic() + 90
    while not list(journal.glob("slow/*.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert cluster.sp2dpo("jobs", "stop", first["job"], *at).wait(60) == 0
    said = again.communicate(timeout=120)[1]
    assert again.returncode == 4
    assert f"{first['job']} does this already, and is followed" in said
    assert f"job {first['job']} was stopped" in said
    told = ended(cluster.sp2dpo(*submit))  # goes on with what is on record
    assert told["new"] is True
    summary = json.loads(told["last"])
    assert 0 < summary["calls_reused"] < summary["calls_made"] + summary["calls_reused"]


def test_a_mistake_costs_no_job(cluster: ThreeNodes, three_config: Path) -> None:
    at = ("--address", cluster.url, "--working-dir", str(three_config.parent))
    before = len(ended(cluster.sp2dpo("jobs", "list", *at[:2], "--json"))["jobs"])
    for arguments, words in (
        (("tune", str(three_config), *at), "'tune' is no stage"),
        (("train", str(three_config), *at, "--set", "train.epoch=2"), "epoch"),
        (
            ("train", str(three_config), *at, "--set", "run.storage=runs"),
            "run.storage: 'runs' is rel",
        ),
        (("train", str(three_config), *at[:2]), "must lie in the working directory"),
    ):
        process = cluster.sp2dpo("submit", *arguments)
        said = process.communicate(timeout=120)[1]
        assert process.returncode == 2, said
        assert words in said
    failed = cluster.sp2dpo("submit", "schedule", str(three_config), *at, "--set", "run.name=none")
    said = failed.communicate(timeout=120)[1]
    assert failed.returncode == 3, said  # the stage's own exit code
    assert "run: sp2dpo annotate" in said
    assert len(ended(cluster.sp2dpo("jobs", "list", *at[:2], "--json"))["jobs"]) == before + 1
