"""The stage as a user meets it: three real SDKs, money, preflight, economy, privacy, replay."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from sp2dpo_ray.annotate.batches import Order, Runner
from sp2dpo_ray.annotate.coordinator import Budget
from sp2dpo_ray.annotate.journal import Journal
from sp2dpo_ray.annotate.record import read_record
from sp2dpo_ray.config import load_config
from sp2dpo_ray.core.place import Folder
from sp2dpo_ray.errors import ConfigError, DataError, Stopped, TeacherStopped
from sp2dpo_ray.run import Run
from sp2dpo_ray.stages import STAGES
from sp2dpo_ray.stages.panel import panel_of
from tests.annotate.test_limits import FakeCoordinator
from tests.fault_server import KEY, Server, serve
from tests.wires import ANSWER

pytestmark = pytest.mark.ray
PRICE = "price: {input: 1.0, output: 1.0, as_of: 2026-01-01}"
NAMES = {"qwen": "dashscope", "openai": "openai", "gemini": "gemini"}


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)


def panel(server: Server, *names: str, more: str = "") -> str:
    """`teachers=...` of API teachers on the server."""
    sections = [
        f"{{name: {name}, provider: {NAMES[name]}, model: m-{name}, api_key_env: TEST_KEY, "
        f"base_url: '{server.url_of(NAMES[name])}', {PRICE}{more}}}"
        for name in names or NAMES
    ]
    return f"teachers=[{', '.join(sections)}]"


def run_of(config: Path, *overrides: str, offline: bool = False) -> Run:
    fast = ("decoding.retry_base_s=0.01", "decoding.timeout_s=5", "data.limit=6")
    run = Run(load_config(str(config), (*fast, "data.eval_fraction=0", *overrides)), offline)
    if not run.path("pairs", "manifest.json").is_file():
        STAGES["prepare"](run)
    return run


def entries(run: Run, kind: str) -> list[dict[str, Any]]:
    everything = Journal(Folder(run.path("journal"))).new_entries()
    return [entry for entry in everything if entry["kind"] == kind]


def test_three_providers_side_by_side_and_all_that_is_on_record(
    ray_cluster: None, demo_config: Path, tmp_path: Path
) -> None:
    rows = [
        {"prompt": f"Write to anna{n}@mail.example.org", "chosen": f"yes {n}", "rejected": "no"}
        for n in range(6)
    ]
    (tmp_path / "mail.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with serve() as server:
        overrides = (
            panel(server), f"data.source={tmp_path}/mail.jsonl", "annotate.redact=true",
            "decoding.repetition_penalty=1.1",
        )  # fmt: skip
        run = run_of(demo_config, *overrides)
        before = STAGES["plan"](run)
        assert (before["calls"], before["calls_recorded"]) == (54, 0)
        assert before["cost_usd"] > 0
        summary = STAGES["annotate"](run)
        assert len(server.requests) == 54
        assert max(server.asked.values()) == 1  # the preflight's calls are not made again
        assert "mail.example.org" not in json.dumps(server.requests)
    assert summary["outcomes"] == {"ok": 54}
    assert (summary["calls_made"], summary["calls_reused"]) == (54, 0)
    assert summary["cost_usd"] == pytest.approx(54 * 120e-6)
    assert summary["redacted"] == {"email": 6, "pairs": 6}
    dropped = {name: set(found) for name, found in summary["settings_dropped"].items()}
    assert dropped == {"openai": {"repetition_penalty"}, "gemini": {"repetition_penalty"}}

    intents = {entry["id"]: entry for entry in entries(run, "intent")}
    results = entries(run, "result")
    assert len(intents) == len(results) == 54
    for result in results:
        assert intents[result["id"]]["worst_usd"] >= result["usd"] > 0
        assert intents[result["id"]]["time"] <= result["time"]
        assert json.loads(result["raw"])  # the body as it came
        assert (result["text"], result["request_id"]) == (ANSWER, "r-1")
        assert result["seconds"] > 0
        assert result["usage"]["prompt_tokens"] == 100
    served = {result["teacher"]: result.get("served_model") for result in results}
    assert served == {"openai": "m-openai-served", "gemini": "m-gemini-served", "qwen": None}
    for path in run.folder.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path

    after = STAGES["plan"](run)
    assert (after["calls_recorded"], after["cost_usd"]) == (54, 0)
    assert after["spent_usd"] == pytest.approx(summary["cost_usd"])

    # the journal merged, the table gone, no server: the same bytes come from the record alone
    assert STAGES["compact"](run)["files_after"] == 3
    table = run.path("annotations", "annotations.parquet")
    content = table.read_bytes()
    for path in run.path("annotations").iterdir():
        path.unlink()
    offline = run_of(demo_config, *overrides, offline=True)
    assert STAGES["annotate"](offline)["calls_made"] == 0
    assert table.read_bytes() == content
    # and what is not on record is an error that says so
    fewer = run_of(demo_config, *overrides, "prompts.variants=[v1, v2]", offline=True)
    assert STAGES["annotate"](fewer)["outcomes"] == {"ok": 36}
    other = run_of(demo_config, *overrides, "decoding.temperature=0.5", offline=True)
    with pytest.raises(DataError, match=r"--offline: 54 of 54 calls are not on record"):
        STAGES["annotate"](other)


def test_the_budget_is_never_passed_and_raising_it_goes_on(
    ray_cluster: None, demo_config: Path
) -> None:
    with serve() as server:
        budget = 0.02  # a call costs 0.00012, and is reserved with about 0.004
        run = run_of(demo_config, panel(server), f"budget.usd={budget}", "data.limit=20")
        with pytest.raises(Stopped, match=r"budget\.usd has no room for another call") as stopped:
            STAGES["annotate"](run)
        assert stopped.value.exit_code == 4
        made = len(server.requests)
        assert 0 < made < 180
        assert made * 120e-6 <= budget
        assert not run.path("annotations").exists()
        summary = STAGES["annotate"](run_of(demo_config, panel(server), "budget.usd=1"))
        assert summary["outcomes"] == {"ok": 180}
        assert len(server.requests) == 180


def test_what_every_call_would_suffer_is_found_with_one(
    ray_cluster: None, demo_config: Path
) -> None:
    for name in NAMES:
        with serve(lambda _: "length") as server:
            run = run_of(demo_config, panel(server, name), f"run.name=length-{name}")
            with pytest.raises(ConfigError, match=r"max_output_tokens \(64\) ran out before") as e:
                STAGES["annotate"](run)
            assert f"teacher {name}" in str(e.value)
            assert "reasoning_effort" in str(e.value)
            assert len(server.requests) == 1
    with serve(lambda _: "gone") as server:
        run = run_of(demo_config, panel(server, "gemini"), "run.name=gone")
        with pytest.raises(TeacherStopped, match=r"teacher gemini: .*404"):
            STAGES["annotate"](run)
        assert len(server.requests) == 1


def test_economy_asks_less_and_moves_no_beta_by_more_than_it_may(
    ray_cluster: None, demo_config: Path
) -> None:
    betas = {}
    made = {}
    for eps in ("null", "0.02"):
        overrides = ("data.limit=30", f"annotate.early_stop={eps}", f"run.name=economy-{eps}")
        run = run_of(demo_config, *overrides)
        summary = STAGES["annotate"](run)
        made[eps] = summary["calls_made"]
        STAGES["schedule"](run)
        table = pq.read_table(run.path("schedule", "schedule.parquet"))
        betas[eps] = dict(
            zip(
                table["prompt_id"].to_pylist(),
                table["beta_annotators_mean_ens"].to_pylist(),
                strict=True,
            )
        )
    assert made["null"] == 180
    assert made["0.02"] == summary["outcomes"]["ok"] < 170
    assert summary["outcomes"]["skipped"] == 180 - made["0.02"]
    assert summary["pairs_complete"] == 30
    assert betas["0.02"].keys() == betas["null"].keys()
    moved = [abs(betas["0.02"][name] - betas["null"][name]) for name in betas["null"]]
    assert 0 < max(moved) <= 0.02

    # what was skipped is skipped again, from the record alone
    for path in run.path("annotations").iterdir():
        path.unlink()
    assert STAGES["annotate"](run)["calls_made"] == 0
    # and the full artifact asks exactly what is missing
    full = run_of(demo_config, "data.limit=30", "run.name=economy-0.02")
    assert STAGES["annotate"](full)["calls_made"] == 180 - made["0.02"]


def test_two_teachers_in_batch_mode_beside_one_that_is_asked_at_once(
    ray_cluster: None, demo_config: Path
) -> None:
    with serve() as server:
        batch = panel(server, "openai", "gemini", more=", mode: batch").removesuffix("]")
        third = panel(server, "qwen").removeprefix("teachers=[")
        run = run_of(demo_config, f"{batch}, {third}", "annotate.poll_s=0.05")
        summary = STAGES["annotate"](run)
        assert summary["outcomes"] == {"ok": 54}
        assert (summary["calls_made"], summary["calls_reused"]) == (54, 0)
        # one call a teacher at once, to see that it answers at all; the rest of two in files
        assert len(server.requests) == 18 + 2
        for batches in (server.openai_batches, server.gemini_batches):
            assert (len(batches.jobs), sum(batches.asked.values())) == (1, 17)
        full, half = 120e-6, 60e-6
        assert summary["cost_usd"] == pytest.approx(20 * full + 34 * half)


def test_runs_that_share_a_journal_share_what_was_paid_for(
    ray_cluster: None, demo_config: Path, tmp_path: Path
) -> None:
    with serve() as server:
        shared = f"annotate.journal={tmp_path}/shared"
        first = run_of(demo_config, panel(server, "openai"), shared, "run.name=one")
        assert STAGES["annotate"](first)["calls_made"] == 18
        second = run_of(demo_config, panel(server, "openai"), shared, "run.name=two")
        assert STAGES["annotate"](second)["calls_made"] == 0
        assert len(server.requests) == 18
    one, two = (run.path("annotations", "annotations.parquet") for run in (first, second))
    assert one.read_bytes() == two.read_bytes()


def test_one_poisonous_pair_never_stops_the_others(
    ray_cluster: None, demo_config: Path, tmp_path: Path
) -> None:
    texts = ["fine", "x" * 100_000, "null \x00 and \u2028 break", "🦊 漢字", "TOO LONG", "HATED"]
    rows = [{"prompt": f"q{n}", "chosen": text, "rejected": "b"} for n, text in enumerate(texts)]
    (tmp_path / "strange.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def plan(body: dict[str, Any]) -> str:
        text = json.dumps(body)
        return "context" if "TOO LONG" in text else "filter" if "HATED" in text else "ok"

    with serve(plan) as server:
        run = run_of(demo_config, panel(server), f"data.source={tmp_path}/strange.jsonl")
        summary = STAGES["annotate"](run)
        assert summary["outcomes"] == {"filtered": 9, "ok": 36, "truncated": 9}
        assert (summary["pairs_complete"], summary["pairs_incomplete"]) == (4, 2)
        assert len(server.requests) == 54
        schedule = STAGES["schedule"](run)
        assert (schedule["pairs"], schedule["excluded"]) == (4, 2)
        reasons = pq.read_table(run.path("schedule", "excluded.parquet"))["reason"].to_pylist()
        assert {reason.split(": ")[1].split(";")[0] for reason in reasons} == {
            "truncated", "filtered"
        }  # fmt: skip
        assert STAGES["annotate"](run)["calls_made"] == 0  # settled: nobody asks again by itself


def test_what_failed_is_asked_again_in_another_round(ray_cluster: None, demo_config: Path) -> None:
    """Without any retries: every second call fails at first, and a call is counted once."""
    asked: Counter[str] = Counter()

    def plan(body: dict[str, Any]) -> str | int:
        text = json.dumps(body)
        asked[text] += 1
        return 500 if asked[text] == 1 and len(asked) % 2 else "ok"

    with serve(plan) as server:
        run = run_of(demo_config, panel(server, "openai"), "decoding.retries=0")
        summary = STAGES["annotate"](run)
        assert summary["outcomes"] == {"ok": 18}
        assert summary["calls_made"] == 18
        assert len(server.requests) == 18 + 9
        assert summary["cost_usd"] == pytest.approx(18 * 120e-6)


def test_two_actors_keep_to_one_limit(ray_cluster: None, demo_config: Path) -> None:
    """600 a minute granted and told: no refusal, and the starts are spaced."""
    with serve(rpm=600) as server:
        limits = ", limits: {rpm: 600, in_flight: 16}"
        run = run_of(demo_config, panel(server, "openai", more=limits), "data.limit=30")
        summary = STAGES["annotate"](run)
        assert summary["outcomes"] == {"ok": 90}
        assert server.statuses == Counter({200: 90})
        times = sorted(server.times)[1:]  # the first is the preflight's
        assert times[-1] - times[0] >= 88 * 0.1  # never faster than it may, whatever the machine


def test_doctor_says_what_each_teacher_lacks(
    demo_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(lambda body: "length" if body.get("model") == "m-openai" else "ok") as server:
        run = run_of(demo_config, panel(server))
        monkeypatch.delenv("TEST_KEY")
        nothing = STAGES["doctor"](run)
        assert {found["state"] for found in nothing["teachers"].values()} == {"cannot be asked"}
        assert all("TEST_KEY, which is empty" in problem for problem in nothing["problems"])
        monkeypatch.setenv("TEST_KEY", KEY)
        summary = STAGES["doctor"](run)
        states = {name: found["state"] for name, found in summary["teachers"].items()}
        assert states == {"qwen": "answers", "gemini": "answers", "openai": "cannot be asked"}
        (problem,) = summary["problems"]
        assert "max_output_tokens (64) ran out" in problem
        assert "capital of Australia" in json.dumps(server.requests)  # its own pair, not the user's
        assert len(server.requests) == 3
    assert KEY not in json.dumps(summary)
    assert not run.path("journal").exists()


def test_open_batch_jobs_that_hold_the_budget_are_taken_first(
    ray_cluster: None, demo_config: Path
) -> None:
    """A command ended while its job was under way; the money it holds leaves room for nothing."""
    with serve() as server:
        batch = panel(server, "openai", more=", mode: batch")
        both = f"{batch.removesuffix(']')}, {panel(server, 'qwen').removeprefix('teachers=[')}"
        first = run_of(demo_config, batch, "annotate.poll_s=0.05")
        record = read_record(Journal(Folder(first.path("journal"))).new_entries())
        server.openai_batches.polls = 1_000_000
        work = panel_of(first)
        order = Order(work.batch[0], list(work.files.values()), record, 0.05)

        async def submitted() -> None:
            runner = Runner(order, FakeCoordinator(Budget(None, 0.0)))
            assert await runner._submit(next(runner._portions([])), 1, wait=True)
            await runner.close()

        asyncio.run(submitted())
        server.openai_batches.polls = 1
        for job in server.openai_batches.jobs.values():
            job["looks"] = 0
        held = read_record(Journal(Folder(first.path("journal"))).new_entries()).usd
        run = run_of(demo_config, both, "annotate.poll_s=0.05", f"budget.usd={held + 1e-6}")
        summary = STAGES["annotate"](run)
        assert summary["outcomes"] == {"ok": 36}
        assert (summary["calls_made"], summary["calls_reused"]) == (36, 0)
        assert max(server.openai_batches.asked.values()) == 1
        assert summary["cost_usd"] == pytest.approx(18 * 60e-6 + 18 * 120e-6)
