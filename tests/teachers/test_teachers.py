"""The teachers: the real OpenAI SDK against a failing server, retries, the offline rules."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import time
from collections.abc import Callable
from typing import Any

import pytest

from sp2dpo_ray.config import DecodingSection, TeacherSection
from sp2dpo_ray.core.annotation import Outcome, read_answer
from sp2dpo_ray.core.calls import Call, calls_of
from sp2dpo_ray.core.pairs import Pair
from sp2dpo_ray.core.prompts import load_prompts
from sp2dpo_ray.errors import ConfigError
from sp2dpo_ray.teachers.base import Reply, identity
from sp2dpo_ray.teachers.catalogue import make_teacher
from sp2dpo_ray.teachers.openai_compatible import request_options
from sp2dpo_ray.teachers.retry import ask_until_settled
from tests.fault_server import ANSWER, KEY, Server, serve

DECODING = DecodingSection(timeout_s=1.0, retries=3, retry_base_s=0.01)
PROMPTS = load_prompts(("v1", "v2", "v3"))
PAIR = Pair("p", [{"role": "user", "content": "How many?"}], "Twelve.", "Ten.")


def section(**changes: Any) -> TeacherSection:
    values = {"name": "t", "provider": "offline", "model": "rules"} | changes
    return TeacherSection.model_validate(values)


def first_call(teacher: TeacherSection, pair: Pair = PAIR) -> Call:
    return next(calls_of(pair, (identity(teacher, DECODING),), PROMPTS))


def ask(server: Server, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> tuple[Reply, list[Any]]:
    """One call until it is settled, and what was recorded of it."""
    monkeypatch.setenv("TEST_KEY", KEY)
    settings = {"provider": "openai", "model": "m", "base_url": server.url,
                "api_key_env": "TEST_KEY"}  # fmt: skip
    teacher = section(**(settings | changes))
    recorded: list[Any] = []

    async def run() -> Reply:
        client = make_teacher(teacher, DECODING)
        reply = await ask_until_settled(
            client, first_call(teacher), DECODING, lambda *entry: recorded.append(entry[1:])
        )
        await client.close()
        return reply

    return asyncio.run(run()), recorded


def sequence(*behaviours: str | int) -> Callable[[Any], str | int]:
    steps = itertools.chain(behaviours, itertools.repeat(behaviours[-1]))
    return lambda _: next(steps)


def test_an_answer_comes_back_with_its_provenance(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(sequence("ok")) as server:
        reply, recorded = ask(server, monkeypatch)
    assert reply == Reply(Outcome.OK, text=ANSWER, request_id="r-1", served_model="m-served",
                          prompt_tokens=100, completion_tokens=20)  # fmt: skip
    assert recorded == [(1, None), (1, reply)]  # the intent stands before the result
    (body,) = server.requests
    assert body["response_format"]["json_schema"]["strict"] is True
    assert (body["temperature"], body["top_p"], body["seed"]) == (0.1, 0.8, 42)
    assert body["max_completion_tokens"] == 64
    assert body["messages"] == first_call(section()).messages


@pytest.mark.parametrize(
    ("behaviours", "outcome", "asked"),
    [
        ([500, "drop", 503, "ok"], Outcome.OK, 4),
        (["garbage", "ok"], Outcome.OK, 2),
        (["hang", "ok"], Outcome.OK, 2),
        ([500], Outcome.TRANSPORT, 4),
        ([429], Outcome.QUOTA, 4),
        ([408, "ok"], Outcome.OK, 2),
        ([400], Outcome.TRANSPORT, 1),
        ([422], Outcome.TRANSPORT, 1),
        ([401], Outcome.AUTH, 1),
        ([403], Outcome.AUTH, 1),
        ([404], Outcome.AUTH, 1),
        (["refusal"], Outcome.REFUSAL, 1),
        (["filter"], Outcome.FILTERED, 1),
        (["length"], Outcome.TRUNCATED, 1),
    ],
)
def test_every_failure_has_its_outcome_and_number_of_attempts(
    monkeypatch: pytest.MonkeyPatch, behaviours: list[Any], outcome: Outcome, asked: int
) -> None:
    with serve(sequence(*behaviours)) as server:
        reply, recorded = ask(server, monkeypatch)
    assert reply.outcome is outcome
    assert len(server.requests) == asked  # the SDK re-sends nothing by itself
    assert [entry[0] for entry in recorded] == [n for n in range(1, asked + 1) for _ in (0, 1)]


def test_retry_after_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(sequence(429, "ok")) as server:
        server.retry_after = "1"  # our own backoff would draw from [0, 0.01] seconds
        start = time.monotonic()
        reply, _ = ask(server, monkeypatch)
    assert reply.outcome is Outcome.OK
    assert time.monotonic() - start >= 1.0


def test_a_spent_account_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(sequence(429)) as server:
        server.error_code = "insufficient_quota"
        reply, _ = ask(server, monkeypatch)
    assert (reply.outcome, len(server.requests)) == (Outcome.AUTH, 1)


def test_the_key_is_in_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(sequence("ok")) as server:
        monkeypatch.setenv("OTHER", "canary-of-another-key")
        reply, _ = ask(server, monkeypatch, api_key_env="OTHER")
    assert reply.outcome is Outcome.AUTH
    assert "canary" not in repr(reply)
    assert "***" in reply.detail


def test_a_missing_key_is_said_before_any_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_KEY", raising=False)
    teacher = section(provider="openai", model="m", api_key_env="NO_KEY")
    with pytest.raises(ConfigError, match="t needs its key in the environment variable NO_KEY"):
        make_teacher(teacher, DECODING)


def test_reasoning_models_get_what_they_take() -> None:
    teacher = section(provider="openai", model="gpt-5-mini-2025-08-07",
                      options={"reasoning_effort": "minimal", "seed": None})  # fmt: skip
    options = request_options(teacher, DECODING)
    assert options["reasoning_effort"] == "minimal"
    assert not {"temperature", "top_p", "seed"} & options.keys()


@pytest.mark.parametrize("persona", ["balanced", "strict", "generous"])
def test_offline_answers_are_valid_and_repeatable(
    persona: str, demo_rows: list[dict[str, Any]]
) -> None:
    teacher = section(options={"persona": persona})
    who = (identity(teacher, DECODING),)
    pairs = [
        Pair(row["prompt_id"], [{"role": "user", "content": row["prompt"]}], row["chosen"],
             row["rejected"])
        for row in demo_rows[:30]
    ]  # fmt: skip

    async def all_answers() -> list[str]:
        rules = make_teacher(teacher, DECODING)
        calls = [call for pair in pairs for call in calls_of(pair, who, PROMPTS)]
        return [(await rules.ask(call)).text or "" for call in calls]

    answers = asyncio.run(all_answers())
    assert all(read_answer(answer).annotation for answer in answers)
    assert asyncio.run(all_answers()) == answers
    assert len(set(answers)) > 20


def test_offline_rules_see_the_gaps_of_the_demo(demo_rows: list[dict[str, Any]]) -> None:
    """Safety above style, and a right label above a flipped one: averages over the demo pairs."""
    teacher = section(options={"persona": "balanced"})
    who = (identity(teacher, DECODING),)

    async def gaps() -> list[tuple[str, bool, float]]:
        rules = make_teacher(teacher, DECODING)
        found = []
        for row in demo_rows:
            pair = Pair(row["prompt_id"], [{"role": "user", "content": row["prompt"]}],
                        row["chosen"], row["rejected"])  # fmt: skip
            for call in calls_of(pair, who, PROMPTS):
                annotation = read_answer((await rules.ask(call)).text or "").annotation
                assert annotation is not None
                gap = annotation.magnitude * annotation.confidence
                found.append((row["known_category"], row["label_flipped"], gap))
        return found

    rows = asyncio.run(gaps())

    def mean(keep: Callable[[str, bool], bool]) -> float:
        values = [gap for category, flipped, gap in rows if keep(category, flipped)]
        return sum(values) / len(values)

    assert mean(lambda c, _: c == "Safety") > 2 * mean(lambda c, _: c == "Style")
    hard = {"Safety", "Factuality", "Instruction"}
    right = mean(lambda c, flipped: c in hard and not flipped)
    assert right > 1.5 * mean(lambda c, flipped: c in hard and flipped)


@pytest.mark.parametrize(
    "changes",
    [{"options": {"persona": "wise"}}, {"options": {"temperature": 1}},
     {"provider": "scripted", "options": {"sript": "x"}}],
)  # fmt: skip
def test_options_that_a_teacher_does_not_know_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="option"):
        make_teacher(section(**changes), DECODING)


def test_an_identity_leaves_out_what_cannot_change_an_answer() -> None:
    one = identity(section(), DECODING)
    slow = DECODING.model_copy(update={"timeout_s": 5.0, "retries": 0})
    assert identity(section(limits={"in_flight": 1}), slow) == one
    assert dataclasses.replace(one, name="u") == identity(section(name="u"), DECODING)
