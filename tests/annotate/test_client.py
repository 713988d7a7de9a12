"""A teacher's place: retries, what is on record and when, money, and who stops what."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sp2dpo_ray.annotate.admission import RateLimitClient, Reservations
from sp2dpo_ray.annotate.client import TeacherClient
from sp2dpo_ray.annotate.coordinator import Budget
from sp2dpo_ray.annotate.journal import Entry, Journal, Segment
from sp2dpo_ray.annotate.limiter import Lease
from sp2dpo_ray.annotate.record import read_record
from sp2dpo_ray.config import DecodingSection, TeacherSection
from sp2dpo_ray.core.annotation import Outcome
from sp2dpo_ray.core.costs import Usage
from sp2dpo_ray.core.place import Folder
from sp2dpo_ray.teachers.base import Reply
from sp2dpo_ray.teachers.retry import ask_until_settled
from sp2dpo_ray.teachers.settings import Settings
from tests.annotate.test_journal import CALLS, answer
from tests.annotate.test_limits import FakeCoordinator, Remote

DECODING = DecodingSection(timeout_s=0.2, retries=3, retry_base_s=0.001)
OK = Reply(Outcome.OK, text=answer(), usage=Usage(1_000_000, 0))
PRICE = {"input": 1.0, "output": 1.0, "as_of": "2026-01-01"}
Script = Callable[[int], Any]


class Scripted:
    """Answers number 0, 1, 2, ...: a reply, an exception to raise, or seconds to hang."""

    settings = Settings()

    def __init__(self, script: Script) -> None:
        self.script = script
        self.asked = 0
        self.at_once = self.most_at_once = 0

    async def ask(self, call: Any) -> Reply:
        step = self.script(self.asked)
        self.asked += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(step if isinstance(step, float) else 0.001)
        self.at_once -= 1
        if isinstance(step, Exception):
            raise step
        return step if isinstance(step, Reply) else OK

    async def close(self) -> None:
        pass


def sequence(*steps: Any) -> Script:
    return lambda number: steps[min(number, len(steps) - 1)]


def ask(
    folder: Path,
    script: Script,
    calls: int = 1,
    coordinator: Any = None,
    limiter: Any = None,
    section: dict[str, str] | None = None,
    patience_s: float | None = None,
    **options: Any,
) -> tuple[list[Reply], TeacherClient, Scripted]:
    """Ask so many calls at once."""
    settings = {"in_flight": 4, "max_failures": 25, "max_pause_s": 10.0} | options
    price = PRICE if coordinator else {}

    async def run() -> tuple[list[Reply], TeacherClient, Scripted]:
        about = {"name": "t", "provider": "scripted", "model": "m", "price": price}
        teacher = Scripted(script)
        segment = Segment(Folder(folder), "t")
        client = TeacherClient(
            TeacherSection.model_validate(about | (section or {})),
            DECODING,
            teacher,
            segment,
            RateLimitClient(limiter),
            Reservations(coordinator),
            **settings,
        )
        asked = [asyncio.create_task(client.ask(CALLS[n % 3])) for n in range(calls)]
        done, _ = await asyncio.wait(asked, timeout=patience_s or 30)
        for task in asked:
            task.cancel()
        replies = [task.result() for task in asked if task in done]
        assert len(replies) == calls or patience_s is not None
        await asyncio.sleep(0.02)
        await client.close()
        return replies, client, teacher

    return asyncio.run(run())


def entries(folder: Path) -> list[Entry]:
    return list(Journal(Folder(folder)).new_entries())


FAILS = Reply(Outcome.TRANSPORT, detail="no")
QUOTA = Reply(Outcome.QUOTA, detail="slow down")


@pytest.mark.parametrize(
    ("steps", "outcome", "asked"),
    [
        ([FAILS, FAILS, FAILS, OK], Outcome.OK, 4),
        ([FAILS], Outcome.TRANSPORT, 4),
        # a refusal for quota is no failure: it takes none of the retries
        ([QUOTA] * 9 + [FAILS, OK], Outcome.OK, 11),
        ([1.0, OK], Outcome.OK, 2),  # longer than decoding.timeout_s
        ([Reply(Outcome.TRANSPORT, non_retryable=True)], Outcome.TRANSPORT, 1),
        ([Reply(Outcome.AUTH, detail="who?")], Outcome.AUTH, 1),
        ([Reply(Outcome.REFUSAL)], Outcome.REFUSAL, 1),
        ([Reply(Outcome.FILTERED)], Outcome.FILTERED, 1),
        ([Reply(Outcome.TRUNCATED)], Outcome.TRUNCATED, 1),
        ([UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogate")], Outcome.TRANSPORT, 1),
    ],
)
def test_what_may_pass_is_asked_again_and_all_is_on_record(
    tmp_path: Path, steps: list[Any], outcome: Outcome, asked: int
) -> None:
    (reply,), _, teacher = ask(tmp_path, sequence(*steps))
    assert (reply.outcome, teacher.asked) == (outcome, asked)
    kinds = [(entry["kind"], entry["attempt"]) for entry in entries(tmp_path)]
    assert kinds == [(kind, n) for n in range(1, asked + 1) for kind in ("intent", "result")]
    ids = [entry["id"] for entry in entries(tmp_path)]
    assert ids[::2] == ids[1::2]
    assert len(set(ids)) == asked


def test_a_server_gets_the_pause_that_it_asks_for() -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    async def attempt(number: int) -> Reply:
        return OK if number == 2 else Reply(Outcome.TRANSPORT, retry_after_s=500.0)

    assert asyncio.run(ask_until_settled(attempt, DECODING, sleep)) is OK
    assert pauses == [500.0]


def test_the_intent_is_on_disk_before_the_request(tmp_path: Path) -> None:
    seen: list[int] = []

    def script(number: int) -> Reply:
        seen.append(len(entries(tmp_path)))
        return OK

    ask(tmp_path, script)
    assert seen == [1]


def test_one_poisonous_pair_stops_nobody(tmp_path: Path) -> None:
    def script(number: int) -> Any:
        return ValueError("poison") if number % 3 == 0 else OK

    replies, client, _ = ask(tmp_path, script, calls=30)
    assert not client.halted
    assert sum(reply.outcome is Outcome.OK for reply in replies) == 20
    bad = [reply for reply in replies if reply.outcome is not Outcome.OK]
    assert {(reply.outcome, reply.detail) for reply in bad} == {
        (Outcome.TRANSPORT, "ValueError: poison")
    }


def test_a_refused_key_halts_the_teacher_at_once(tmp_path: Path) -> None:
    replies, client, teacher = ask(
        tmp_path, sequence(Reply(Outcome.AUTH, detail="wrong key")), calls=100
    )
    assert client.halted == "wrong key"
    assert teacher.asked <= 4  # those that were under way
    rest = [reply for reply in replies if reply.outcome is Outcome.NOT_ATTEMPTED]
    assert len(rest) == 100 - teacher.asked
    assert {reply.detail for reply in rest} == {"wrong key"}


def test_a_row_of_failures_opens_the_circuit_and_an_answer_closes_it(tmp_path: Path) -> None:
    _, client, teacher = ask(tmp_path / "a", sequence(FAILS), calls=100, max_failures=5)
    assert client.halted == (
        "20 attempts in a row failed (annotate.max_failures 5 x 4 attempts), last: no"
    )
    assert teacher.asked < 30
    _, client, _ = ask(tmp_path / "b", lambda n: FAILS if n % 15 else OK, calls=100, max_failures=5)
    assert not client.halted


def test_no_more_requests_are_under_way_than_allowed(tmp_path: Path) -> None:
    _, _, teacher = ask(tmp_path, sequence(0.01), calls=60, in_flight=3)
    assert (teacher.asked, teacher.most_at_once) == (60, 3)


def test_a_pause_longer_than_allowed_stops_instead_of_waiting(tmp_path: Path) -> None:
    day = Reply(Outcome.QUOTA, detail="daily quota", retry_after_s=86_400.0)
    (reply,), client, _ = ask(tmp_path, sequence(day))
    assert "asks for a pause of 86,400 s, longer than annotate.max_pause_s" in client.halted
    assert reply.outcome is Outcome.NOT_ATTEMPTED


class FarLimiter:
    """Grants one start at once and the others in a day; keeps what it is told of refusals."""

    def __init__(self) -> None:
        self.leases = 0
        self.told: list[float | None] = []
        self.lease = Remote(self._lease)
        self.refused = SimpleNamespace(remote=self.told.append)

    def _lease(self, wanted: int, tokens: float) -> Lease:
        self.leases += 1
        return Lease(1, 0.0 if self.leases == 1 else 86_400.0, 1.0)


@pytest.mark.parametrize("outcome", [Outcome.QUOTA, Outcome.TRANSPORT])
def test_those_that_wait_for_a_start_see_the_halt(tmp_path: Path, outcome: Outcome) -> None:
    limiter = FarLimiter()
    day = Reply(outcome, detail="come tomorrow", retry_after_s=86_400.0)
    replies, client, teacher = ask(tmp_path, sequence(day), calls=8, limiter=limiter)
    assert (teacher.asked, client.halted != "") == (1, True)
    assert {reply.outcome for reply in replies} == {Outcome.NOT_ATTEMPTED}
    assert limiter.told == []  # it outlives this stage, and would keep everybody waiting


def test_a_pause_that_a_failing_server_asks_for_is_kept_by_all(tmp_path: Path) -> None:
    limiter = FarLimiter()
    busy = Reply(Outcome.TRANSPORT, detail="503", retry_after_s=5.0)
    client, teacher = ask(tmp_path, sequence(busy), limiter=limiter, patience_s=0.1)[1:]
    assert (teacher.asked, client.halted, limiter.told) == (1, "", [5.0])


def test_an_exception_that_shows_the_key_is_recorded_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_KEY", "canary-key")
    section = {"provider": "openai", "api_key_env": "TEST_KEY"}
    step = ValueError("header 'Bearer canary-key' is not valid")
    (reply,), _, _ = ask(tmp_path, sequence(step), section=section)
    assert reply.detail == "ValueError: header 'Bearer ***' is not valid"
    assert "canary-key" not in json.dumps(entries(tmp_path))


def test_a_journal_that_cannot_be_written_stops_before_the_request(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("a file where the folder should be")
    (reply,), client, teacher = ask(tmp_path, sequence(OK))
    assert teacher.asked == 0
    assert reply.outcome is Outcome.NOT_ATTEMPTED
    assert client.halted.startswith("journal: ")


@pytest.mark.parametrize(
    ("step", "usd", "possibly"),
    [
        (OK, 1.0, False),
        (Reply(Outcome.REFUSAL, usage=Usage(0, 500_000)), 0.5, False),
        (QUOTA, 0.0, False),
        (Reply(Outcome.TRANSPORT, non_retryable=True), 0.0, False),  # an error answer is not billed
        (Reply(Outcome.TRANSPORT, non_retryable=True, maybe_billed=True), 0.0, True),
        (ValueError("lost"), 0.0, True),
    ],
)
def test_money_is_what_usage_says_or_the_worst_where_nobody_knows(
    tmp_path: Path, step: Any, usd: float, possibly: bool
) -> None:
    coordinator = FakeCoordinator(Budget(None, 0.0))
    steps = [step, Reply(Outcome.REFUSAL)] if step is QUOTA else [step]
    ask(tmp_path, sequence(*steps), coordinator=coordinator)
    spent = read_record(entries(tmp_path)).spent["t"]
    assert spent.usd == usd
    assert (spent.possibly_usd > 0) == possibly
    assert coordinator.budget.spent == pytest.approx(spent.usd + spent.possibly_usd)
    assert coordinator.budget.reserved == pytest.approx(0.0)


def test_calls_beyond_the_budget_are_not_made(tmp_path: Path) -> None:
    call_worst = 0.004  # about 3,000 bytes of prompt at 1 USD for a million tokens
    cheap = Reply(Outcome.OK, text=answer(), usage=Usage(100, 0))
    coordinator = FakeCoordinator(Budget(call_worst, 0.0))
    replies, _, teacher = ask(
        tmp_path, sequence(cheap), calls=200, coordinator=coordinator, in_flight=8
    )
    stopped = [reply for reply in replies if reply.outcome is Outcome.BUDGET_STOP]
    assert 0 < len(stopped) < 200
    assert teacher.asked == 200 - len(stopped)
    assert coordinator.most <= call_worst
    assert len(entries(tmp_path)) == 2 * teacher.asked  # nothing of the others
