"""Batch mode: the real SDKs against the two batch APIs; nothing is handed in twice."""

from __future__ import annotations

import asyncio
import itertools
import json
import traceback
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sp2dpo_ray.annotate.answers import Answers
from sp2dpo_ray.annotate.batches import Order, Runner
from sp2dpo_ray.annotate.coordinator import Budget
from sp2dpo_ray.annotate.journal import Journal
from sp2dpo_ray.annotate.record import Record, read_record
from sp2dpo_ray.annotate.spec import PanelSpec
from sp2dpo_ray.annotate.tally import Tally
from sp2dpo_ray.config import DecodingSection, TeacherSection
from sp2dpo_ray.core.calls import calls_of
from sp2dpo_ray.core.pairs import PAIR_FIELDS, pairs_from
from sp2dpo_ray.core.place import Folder
from sp2dpo_ray.core.prompts import load_prompts
from sp2dpo_ray.errors import Stopped, TeacherStopped
from sp2dpo_ray.stages import annotate as stage
from tests.annotate.test_limits import FakeCoordinator
from tests.fault_server import KEY, Server, serve
from tests.wires import ANSWER

PROMPTS = load_prompts(("v1", "v2", "v3"))
DECODING = DecodingSection(retries=2, retry_base_s=0.01)
PAIRS = 10
CALLS = 3 * PAIRS
each_provider = pytest.mark.parametrize("provider", ["openai", "gemini"])


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    rows = [
        {"prompt_id": f"p{n}", "prompt": [{"role": "user", "content": f"question {n}"}],
         "chosen": f"good {n}", "rejected": f"bad {n}"}
        for n in range(PAIRS)
    ]  # fmt: skip
    path = tmp_path / "pairs.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(PAIR_FIELDS)), path)
    return path


def order(provider: str, server: Server, pairs: Path) -> Order:
    teacher = TeacherSection.model_validate(
        {"name": "t", "provider": provider, "model": "m", "mode": "batch",
         "base_url": server.url_of(provider), "api_key_env": "TEST_KEY",
         "price": {"input": 1.0, "output": 1.0, "as_of": "2026-01-01"}}
    )  # fmt: skip
    place = Folder(pairs.parent / "journal")
    spec = PanelSpec((teacher,), DECODING, PROMPTS, place, 1, 25, 10.0)
    return Order(spec, [pairs], read_record(Journal(place).new_entries()), poll_s=0.01)


def counts(rows: list[dict[str, Any]]) -> dict[tuple[str, bool], int]:
    found: Counter[tuple[str, bool]] = Counter()
    for row in rows:
        found[row["outcome"], row["reused"]] += row["calls"]
    return dict(found)


def work(
    the: Order, coordinator: Any = None, *, most_requests: int | None = None
) -> list[dict[str, Any]]:
    async def run() -> list[dict[str, Any]]:
        runner = Runner(the, coordinator or FakeCoordinator(Budget(None, 0.0)))
        if most_requests:
            runner._api.most_requests = most_requests
        try:
            return [row async for rows in runner.rounds() for row in rows]
        finally:
            await runner.close()

    return asyncio.run(run())


def batches_of(server: Server, provider: str) -> Any:
    return server.openai_batches if provider == "openai" else server.gemini_batches


def record_of(pairs: Path) -> Record:
    return read_record(Journal(Folder(pairs.parent / "journal")).new_entries())


class Puts:
    """An object store as far as one writer sees it."""

    def __init__(self) -> None:
        self.objects: list[bytes] = []

    def put(self, name: str, content: bytes) -> None:
        self.objects.append(content)


@each_provider
def test_files_go_out_and_answers_come_back_under_the_same_keys(provider: str, pairs: Path) -> None:
    with serve() as server:
        the = order(provider, server, pairs)
        rows = work(the, most_requests=7)
        batches = batches_of(server, provider)
        assert len(batches.jobs) == 5  # 30 calls, 7 to a file
        assert not server.requests  # no call at the full price
    assert counts(rows) == {("ok", False): CALLS}
    keys = [
        call.key
        for pair in pairs_from(pq.read_table(pairs))
        for call in calls_of(pair, the.spec.identities, PROMPTS)
    ]
    assert batches.asked == Counter(keys)
    answers = Answers(Journal(the.spec.place).new_entries())
    assert {answer.text for answer in answers.get(keys).values()} == {ANSWER}
    assert len(answers.get(keys)) == CALLS
    record = record_of(pairs)
    assert (record.jobs, record.unanswered) == ({}, 0)
    # 120 tokens a call at 1 USD a million, at half price
    assert record.spent["t"].usd == pytest.approx(CALLS * 120e-6 / 2)
    assert sum(row["usd"] for row in rows) == pytest.approx(record.spent["t"].usd)

    with serve() as server:
        again = work(order(provider, server, pairs))
        assert not batches_of(server, provider).jobs
    assert counts(again) == {("ok", True): CALLS}


@each_provider
def test_a_request_in_a_file_is_the_request_of_interactive_mode(provider: str, pairs: Path) -> None:
    """The same body, to the last option: else the same key would stand for two things."""
    from sp2dpo_ray.teachers.catalogue import make_teacher

    with serve() as server:
        the = order(provider, server, pairs)
        pair = pairs_from(pq.read_table(pairs))[0]
        call = next(calls_of(pair, the.spec.identities, PROMPTS))

        async def ask() -> bytes:
            teacher = make_teacher(the.teacher, DECODING)
            await teacher.ask(call)
            await teacher.close()
            runner = Runner(the, None)
            line = runner._api.line(call)
            await runner.close()
            return line

        line = json.loads(asyncio.run(ask()))
        (sent,) = server.requests
    if provider == "openai":
        assert line["body"] == sent
    else:
        sent["systemInstruction"].pop("role", None)
        assert line["request"] == sent
    assert (line.get("custom_id") or line.get("key")) == call.key


@each_provider
def test_a_lost_answer_to_a_creation_makes_no_second_job(provider: str, pairs: Path) -> None:
    with serve() as server:
        batches = batches_of(server, provider)
        batches.refuse_creation = 1
        rows = work(order(provider, server, pairs))
    assert counts(rows) == {("ok", False): CALLS}
    assert len(batches.jobs) == 1
    assert max(batches.asked.values()) == 1


@each_provider
def test_a_killed_command_finds_its_jobs_again(provider: str, pairs: Path) -> None:
    """Cut off while it waits; the next one takes the results and hands in nothing."""
    with serve() as server:
        batches = batches_of(server, provider)
        batches.polls = 1_000_000

        async def cut_off() -> None:
            runner = Runner(order(provider, server, pairs), FakeCoordinator(Budget(None, 0.0)))
            async with asyncio.timeout(2.5):
                async for _ in runner.rounds():
                    pass

        with pytest.raises(TimeoutError):
            asyncio.run(cut_off())
        record = record_of(pairs)
        (job,) = record.jobs.values()
        assert job.id in batches.jobs
        assert len(job.intents) == CALLS
        assert record.usd > 0  # at its worst, until the results are there
        for known in batches.jobs.values():
            known["looks"] = 0
        batches.polls = 1
        coordinator = FakeCoordinator(Budget(None, record.usd))
        rows = work(order(provider, server, pairs), coordinator)
        assert len(batches.jobs) == 1
    assert counts(rows) == {("ok", False): CALLS}
    assert max(batches.asked.values()) == 1
    assert coordinator.budget.spent == pytest.approx(record_of(pairs).usd)


@each_provider
def test_a_command_killed_before_the_id_was_recorded_looks_for_its_job(
    provider: str, pairs: Path
) -> None:
    with serve() as server:
        batches = batches_of(server, provider)
        batches.polls = 1_000_000

        async def cut_off(*, created: bool) -> None:
            runner = Runner(order(provider, server, pairs), FakeCoordinator(Budget(None, 0.0)))
            submit = runner._api.submit

            async def killed(token: str, content: bytes) -> str:
                if created:
                    await submit(token, content)
                raise KeyboardInterrupt

            runner._api.submit = killed  # type: ignore[method-assign]
            async for _ in runner.rounds():
                pass

        for created in (False, True):
            with pytest.raises(KeyboardInterrupt):
                asyncio.run(cut_off(created=created))
            if not created:
                # that job never came to be: its money is free again, its calls are asked anew
                assert len(record_of(pairs).jobs) == 1
        assert len(batches.jobs) == 1
        batches.polls = 1
        rows = work(order(provider, server, pairs))
        assert len(batches.jobs) == 1
    assert counts(rows) == {("ok", False): CALLS}
    assert (record_of(pairs).jobs, record_of(pairs).unanswered) == ({}, 0)


def test_an_expired_job_gives_what_it_has_and_the_rest_is_asked_again(pairs: Path) -> None:
    with serve() as server:
        batches = server.openai_batches
        batches.fate = "expired"  # half of the lines
        rows = work(order("openai", server, pairs))
        halves = [len(batches.files[job["source"]].splitlines()) for job in batches.jobs.values()]
    assert halves == [30, 15, 8]  # three rounds: decoding.retries is 2
    assert counts(rows) == {("ok", False): 15 + 7 + 4, ("transport", False): 4}
    assert sum(record_of(pairs).settled([k]) == [True] for k in batches.asked) == 26


@each_provider
def test_failed_and_missing_lines_are_asked_again_alone(provider: str, pairs: Path) -> None:
    turns = itertools.count()
    with serve() as server:
        batches = batches_of(server, provider)
        batches.plan = lambda _: ["ok", "error", "missing"][next(turns) % 3]
        rows = work(order(provider, server, pairs))
    assert sum(counts(rows).values()) == CALLS
    # a third of 30, of the 20 left, and of the 13 left then
    assert counts(rows) == {("ok", False): 10 + 7 + 4, ("transport", False): 9}
    assert max(batches.asked.values()) == 3


@each_provider
def test_a_line_that_is_at_fault_itself_is_not_handed_in_again(provider: str, pairs: Path) -> None:
    turns = itertools.count()
    with serve() as server:
        batches = batches_of(server, provider)
        batches.plan = lambda _: ["ok", "refused"][next(turns) % 2]
        rows = work(order(provider, server, pairs))
        assert len(batches.jobs) == 1
    assert counts(rows) == {("ok", False): 15, ("transport", False): 15}
    (bad,) = [row for row in rows if row["outcome"] == "transport"]
    assert bad["final"]
    assert "batch error" in bad["detail"]
    tally = Tally()
    tally.take(rows, lambda *_: None)
    assert (tally.failed, tally.outcomes["t"]["transport"]) == (0, 15)
    # the next command may ask again, another round of this one does not
    assert sum(record_of(pairs).settled(list(batches.asked))) == 15
    entries = Journal(Folder(pairs.parent / "journal")).new_entries()
    assert all(read_record(entries, given_up=True).settled(list(batches.asked)))


@each_provider
def test_an_answer_that_tells_no_usage_counts_at_its_worst(provider: str, pairs: Path) -> None:
    with serve() as server:
        batches_of(server, provider).plan = lambda _: "unbilled"
        the = order(provider, server, pairs)
        coordinator = FakeCoordinator(Budget(None, 0.0))
        assert counts(work(the, coordinator)) == {("ok", False): CALLS}
    spent = record_of(pairs).spent["t"]
    assert (spent.usd, spent.possibly_usd) == (0.0, pytest.approx(worst_of(the)))
    assert coordinator.budget.spent == pytest.approx(worst_of(the))


def test_a_job_is_few_objects_in_an_object_store(pairs: Path) -> None:
    store = Puts()
    with serve() as server:
        the = order("openai", server, pairs)
        work(replace(the, spec=replace(the.spec, place=store)))
    # intents (the first line goes alone), two notes of the job, results, a note of its end
    assert len(store.objects) <= 7
    entries = [json.loads(line) for body in store.objects for line in body.splitlines()]
    assert Counter(entry["kind"] for entry in entries) == {
        "intent": CALLS, "job": 2, "result": CALLS, "job_done": 1
    }  # fmt: skip


def test_a_job_that_fails_stops_with_its_reason(pairs: Path) -> None:
    with serve() as server:
        server.openai_batches.fate = "failed"
        with pytest.raises(TeacherStopped, match=r"teacher t: batch job batch_2 failed"):
            work(order("openai", server, pairs))
    assert record_of(pairs).jobs == {}


def test_a_wrong_key_stops_before_anything_is_created(
    pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve() as server:
        the = order("openai", server, pairs)
        section = the.teacher.model_copy(update={"base_url": server.url + "/nowhere"})
        the = replace(the, spec=replace(the.spec, teachers=(section,)))
        with pytest.raises(TeacherStopped, match=r"teacher t: batch: NotFoundError"):
            work(the)


@each_provider
@pytest.mark.parametrize("final", [True, None])
def test_the_key_is_in_no_error(
    provider: str, final: bool | None, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some servers repeat it in their complaint; final: None is an error that is not the API's."""

    async def run(the: Order) -> None:
        runner = Runner(the, FakeCoordinator(Budget(None, 0.0)))

        async def find(token: str) -> str | None:
            raise ValueError(f"Incorrect API key provided: {KEY}")

        monkeypatch.setattr(runner._api, "find", find)
        monkeypatch.setattr(runner._api, "refused", lambda error: final)
        try:
            async for _ in runner.rounds():
                pass
        finally:
            await runner.close()

    with serve() as server, pytest.raises(TeacherStopped if final else RuntimeError) as stopped:
        asyncio.run(run(order(provider, server, pairs)))
    assert "ValueError: Incorrect API key provided: ***" in str(stopped.value)
    assert KEY not in "".join(traceback.format_exception(stopped.value))


def test_a_file_that_the_budget_has_no_room_for_is_not_handed_in(pairs: Path) -> None:
    with serve() as server:
        rows = work(order("openai", server, pairs), FakeCoordinator(Budget(1e-6, 0.0)))
        assert not server.openai_batches.jobs
    assert counts(rows) == {("budget_stop", False): CALLS}
    assert not list(Journal(Folder(pairs.parent / "journal")).new_entries())


def worst_of(the: Order) -> float:
    """What all calls can cost at most."""
    price, cap = the.teacher.rate, DECODING.max_output_tokens
    assert price is not None
    calls = the.spec.calls(pairs_from(pq.read_table(the.files[0])))
    return sum(price.worst(call.messages, cap) for call in calls)


def test_the_end_of_one_file_makes_room_for_the_next(pairs: Path) -> None:
    """Two files of which the budget holds one at its worst; both cost little in fact."""
    with serve() as server:
        the = order("openai", server, pairs)
        coordinator = FakeCoordinator(Budget(0.75 * worst_of(the), 0.0))
        rows = work(the, coordinator, most_requests=15)
        assert len(server.openai_batches.jobs) == 2
    assert counts(rows) == {("ok", False): CALLS}
    assert coordinator.most <= 0.75 * worst_of(the)
    assert coordinator.budget.spent == pytest.approx(record_of(pairs).usd)


@each_provider
def test_a_job_of_an_earlier_command_is_taken_before_the_budget_stops(
    provider: str, pairs: Path
) -> None:
    """It counts as spent at its worst, so that nothing else has room until it is taken."""
    with serve() as server:
        batches = batches_of(server, provider)
        batches.polls = 1_000_000
        the = order(provider, server, pairs)
        worst = worst_of(the)

        async def cut_off() -> None:
            runner = Runner(the, FakeCoordinator(Budget(None, 0.0)))
            runner._api.most_requests = 15
            portion = next(runner._portions([]))
            assert await runner._submit(portion, 1, wait=True)
            await runner.close()

        asyncio.run(cut_off())
        batches.polls = 1
        for job in batches.jobs.values():
            job["looks"] = 0
        spent = record_of(pairs).usd
        coordinator = FakeCoordinator(Budget(0.75 * worst, spent))
        rows = work(order(provider, server, pairs), coordinator, most_requests=15)
        assert len(batches.jobs) == 2
    assert counts(rows) == {("ok", False): CALLS}
    assert max(batches.asked.values()) == 1
    assert coordinator.budget.spent == pytest.approx(record_of(pairs).usd)


def test_a_teacher_without_room_leaves_no_other_job_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "rows_of", iter)
    row = {"reused": False, "usd": 0.0, "detail": "", "calls": 3}
    streams = [
        [[row | {"teacher": "a", "outcome": "budget_stop"}]],
        [[row | {"teacher": "b", "outcome": "ok"}], [row | {"teacher": "b", "outcome": "ok"}]],
    ]
    tally = Tally()
    with pytest.raises(Stopped, match=r"budget\.usd has no room"):
        stage._take(streams, tally, lambda *_: None)
    assert tally.made == {"b": 6}
