"""Which call is asked before all others, and what a lost worker costs; no Ray."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import WorkerCrashedError

from sp2dpo_ray.annotate import client
from sp2dpo_ray.annotate import preflight as module
from sp2dpo_ray.annotate.batches import Order, Runner
from sp2dpo_ray.annotate.coordinator import Budget
from sp2dpo_ray.annotate.journal import Entry, Journal
from sp2dpo_ray.annotate.preflight import preflight
from sp2dpo_ray.annotate.record import read_record
from sp2dpo_ray.annotate.spec import PanelSpec
from sp2dpo_ray.config import DecodingSection, TeacherSection, load_config
from sp2dpo_ray.core.annotation import Outcome
from sp2dpo_ray.core.calls import Call
from sp2dpo_ray.core.costs import Usage
from sp2dpo_ray.core.pairs import Pair
from sp2dpo_ray.core.place import Folder, Place
from sp2dpo_ray.core.prompts import load_prompts
from sp2dpo_ray.errors import Stopped
from sp2dpo_ray.run import Run
from sp2dpo_ray.stages import STAGES
from sp2dpo_ray.stages import annotate as stage
from sp2dpo_ray.stages.panel import panel_of
from sp2dpo_ray.teachers.base import Reply
from tests.annotate.test_journal import attempt, ok, write
from tests.annotate.test_limits import FakeCoordinator
from tests.fault_server import KEY, serve

PAIRS = [Pair("p", [{"role": "user", "content": "x"}], "a", "b")]
OK = Reply(Outcome.OK, text="{}", usage=Usage(1, 1))


def spec_of(folder: Path, mode: str) -> PanelSpec:
    teacher = TeacherSection.model_validate(
        {"name": "t", "provider": "openai", "model": "m", "api_key_env": "TEST_KEY", "mode": mode}
    )
    prompts = load_prompts(("v1", "v2"))
    return PanelSpec((teacher,), DecodingSection(), prompts, Folder(folder), 1, 25, 10.0)


def open_job(calls: list[Call]) -> list[Entry]:
    job = {"kind": "job", "token": "k", "teacher": "t", "job": "batch_1", "calls": 1, "time": 0.0}
    return [*(attempt(call, None)[0] | {"job": "k"} for call in calls), job]


@pytest.mark.parametrize(
    ("mode", "waiting", "asked"),
    [("batch", 1, [1]), ("batch", 2, []), ("interactive", 1, [0])],
)
def test_a_call_whose_answer_is_on_its_way_is_not_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, waiting: int, asked: list[int]
) -> None:
    spec, seen = spec_of(tmp_path, mode), []

    def answer(_: PanelSpec, calls: dict[str, Call], coordinator: Any) -> dict[str, Reply]:
        seen.extend(call.key for call in calls.values())
        return dict.fromkeys(calls, OK)

    monkeypatch.setattr(module, "_asked", answer)
    calls = spec.calls(PAIRS)
    preflight(spec, PAIRS, read_record(open_job(calls[:waiting])), None)
    assert seen == [calls[number].key for number in asked]


def test_a_lost_worker_s_answer_is_not_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, seen = spec_of(tmp_path, "interactive"), []

    def lost(_: PanelSpec, calls: dict[str, Call], coordinator: Any) -> dict[str, Reply]:
        (call,) = calls.values()
        seen.append(call.key)
        write(spec.place, *attempt(call, ok()))
        if len(seen) == 1:
            raise WorkerCrashedError
        return {"t": OK}

    monkeypatch.setattr(module, "_asked", lost)
    assert preflight(spec, PAIRS, read_record([]), None) == {"t": OK}
    assert seen == [call.key for call in spec.calls(PAIRS)]


def test_workers_that_are_lost_again_and_again_stop_the_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: Any) -> dict[str, Reply]:
        raise WorkerCrashedError

    monkeypatch.setattr(module, "_asked", lost)
    with pytest.raises(Stopped, match="worker was lost 3 times"):
        preflight(spec_of(tmp_path, "interactive"), PAIRS, read_record([]), None)


async def told(answer: Any) -> Any:
    return answer


def test_an_open_job_that_holds_the_budget_is_taken_before_the_first_call(
    demo_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command ended while its job was under way. Counted at its worst, it leaves no room for the
    other teacher's first call."""
    monkeypatch.setenv("TEST_KEY", KEY)
    with serve() as server:
        teachers = [
            f"{{name: {name}, provider: {name}, model: m, mode: batch, api_key_env: TEST_KEY, "
            f"base_url: '{server.url_of(name)}', "
            "price: {input: 1, output: 1, as_of: 2026-01-01}}"
            for name in ("gemini", "openai")
        ]
        few = ("data.limit=6", "data.eval_fraction=0", "annotate.poll_s=0.01")
        overrides = (*few, f"teachers=[{', '.join(teachers)}]")
        run = Run(load_config(str(demo_config), overrides))
        STAGES["prepare"](run)
        panel = panel_of(run)
        place, files = panel.spec.place, list(panel.files.values())
        of_openai = replace(panel.spec, teachers=panel.spec.teachers[1:])

        async def rounds(order: Order, coordinator: Any, *, only_submit: bool) -> list[Any]:
            runner = Runner(order, coordinator)
            try:
                if only_submit:
                    return [await runner._submit(next(runner._portions([])), 1, wait=True)]
                return [rows async for rows in runner.rounds()]
            finally:
                await runner.close()

        free = FakeCoordinator(Budget(None, 0.0))
        asyncio.run(rounds(Order(of_openai, files, read_record([]), 0.01), free, only_submit=True))
        held = read_record(Journal(place).new_entries()).usd
        coordinators = []

        def start(_: Place, cap: float | None, spent: float, patience_s: float) -> Any:
            coordinators.append(FakeCoordinator(Budget(cap, spent)))
            # a message counts when it is sent, even if nobody waits for its answer
            send = coordinators[-1]._exchange
            return SimpleNamespace(exchange=SimpleNamespace(remote=lambda *m: told(send(*m))))

        def work(order: Order, coordinator: Any) -> list[Any]:
            return asyncio.run(rounds(order, coordinator, only_submit=False))

        for where, name, fake in (
            (stage, "start_coordinator", start), (stage, "limiter_of", lambda _: None),
            (client, "limiter_of", lambda *_, **__: None), (module, "_asked", module._ask_once),
            (stage, "start_batches", work), (stage, "rows_of", iter),
            (stage, "expect", lambda _: None),
        ):  # fmt: skip
            monkeypatch.setattr(where, name, fake)
        run = Run(load_config(str(demo_config), (*overrides, f"budget.usd={held + 0.001}")))
        summary = STAGES["annotate"](run)
        batches = (server.openai_batches, server.gemini_batches)
        assert [sum(each.asked.values()) for each in batches] == [18, 17]
        assert len(server.requests) == 1  # the preflight of the other one
    assert summary["outcomes"] == {"ok": 36}
    assert (summary["calls_made"], summary["calls_reused"]) == (36, 0)
    assert summary["cost_usd"] == pytest.approx(35 * 60e-6 + 120e-6)
    assert coordinators[0].most <= held + 0.001
