"""The three API teachers: the real SDKs against a server that fails in every way it can."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from sp2dpo_ray.config import DecodingSection, TeacherSection
from sp2dpo_ray.core.annotation import ANSWER_SCHEMA, Outcome
from sp2dpo_ray.core.calls import Call, calls_of
from sp2dpo_ray.core.costs import Usage
from sp2dpo_ray.core.pairs import Pair
from sp2dpo_ray.core.prompts import load_prompts
from sp2dpo_ray.errors import ConfigError
from sp2dpo_ray.teachers.base import Reply, identity, seconds
from sp2dpo_ray.teachers.catalogue import make_teacher, settings_of
from tests.fault_server import KEY, Server, serve
from tests.wires import ANSWER, WIRES

DECODING = DecodingSection(timeout_s=5.0)
PROMPTS = load_prompts(("v1",))
PAIR = Pair("p", [{"role": "user", "content": "How many?"}], "Twelve.", "Ten.")
PROVIDERS = ["openai", "gemini", "dashscope"]
each_provider = pytest.mark.parametrize("provider", PROVIDERS)


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)


def section(provider: str, server: Server | None = None, **changes: Any) -> TeacherSection:
    values = {"name": "t", "provider": provider, "model": "m", "api_key_env": "TEST_KEY"}
    if server is not None:
        values["base_url"] = server.url_of(provider)
    return TeacherSection.model_validate(values | changes)


def call_of(teacher: TeacherSection, pair: Pair = PAIR) -> Call:
    return next(calls_of(pair, (identity(teacher, DECODING),), PROMPTS))


def ask(teacher: TeacherSection, *pairs: Pair) -> list[Reply]:
    async def run() -> list[Reply]:
        client = make_teacher(teacher, DECODING)
        try:
            return [await client.ask(call_of(teacher, pair)) for pair in pairs or (PAIR,)]
        finally:
            await client.close()

    return asyncio.run(run())


@each_provider
def test_an_answer_comes_back_with_its_provenance(provider: str) -> None:
    with serve() as server:
        (reply,) = ask(section(provider, server))
    assert (reply.outcome, reply.text, reply.request_id) == (Outcome.OK, ANSWER, "r-1")
    assert reply.served_model == (None if provider == "dashscope" else "m-served")
    assert reply.fingerprint == ("fp-1" if provider == "openai" else None)
    reasoning = 5 if provider == "gemini" else 0
    assert reply.usage == Usage(100, 20, reasoning_tokens=reasoning)
    assert not reply.maybe_billed
    assert json.loads(reply.raw or "") == WIRES[provider].success("m", ANSWER, "stop")
    (body,) = server.requests
    messages = call_of(section(provider)).messages
    assert list(WIRES[provider].texts(body)) == [message["content"] for message in messages]


def test_each_provider_gets_the_settings_of_table_6_in_its_own_words() -> None:
    sent = {}
    for provider in PROVIDERS:
        with serve() as server:
            ask(section(provider, server))
        (sent[provider],) = server.requests
    openai, gemini = sent["openai"], sent["gemini"]["generationConfig"]
    dashscope = sent["dashscope"]["parameters"]
    assert (openai["temperature"], openai["top_p"], openai["seed"]) == (0.1, 0.8, 42)
    assert openai["max_completion_tokens"] == 64
    assert openai["response_format"]["json_schema"]["schema"] == ANSWER_SCHEMA
    assert openai["response_format"]["json_schema"]["strict"] is True
    assert (gemini["temperature"], gemini["topP"], gemini["seed"]) == (0.1, 0.8, 42)
    assert gemini["maxOutputTokens"] == 64
    assert gemini["responseMimeType"] == "application/json"
    assert gemini["responseJsonSchema"] == ANSWER_SCHEMA
    assert (dashscope["temperature"], dashscope["top_p"], dashscope["seed"]) == (0.1, 0.8, 42)
    assert dashscope["max_tokens"] == 64
    assert dashscope["response_format"] == {"type": "json_object"}
    # json_object is refused by the service unless the messages say "json"
    assert "json" in json.dumps(sent["dashscope"]["input"]["messages"]).lower()


FULL = DecodingSection(
    top_k=20, frequency_penalty=0.1, presence_penalty=0.2, repetition_penalty=1.1, stop=("x",)
)


@pytest.mark.parametrize(
    ("provider", "model", "dropped"),
    [
        ("openai", "gpt-4.1", {"top_k", "repetition_penalty"}),
        ("openai", "gpt-5-mini-2025-08-07",
         {"top_k", "repetition_penalty", "temperature", "top_p", "frequency_penalty",
          "presence_penalty", "stop"}),
        ("gemini", "gemini-2.0-flash", {"repetition_penalty"}),
        ("dashscope", "qwen-max-2025-01-25", {"frequency_penalty"}),
        ("offline", "rules", set()),
    ],
)  # fmt: skip
def test_what_a_model_does_not_take_is_dropped_and_recorded(
    provider: str, model: str, dropped: set[str]
) -> None:
    teacher = section(provider, model=model)
    settings = settings_of(teacher, FULL)
    assert settings.dropped.keys() == dropped
    assert all(settings.dropped.values())  # each with its reason
    assert not set(settings.sent) & dropped
    # neutral values ask for nothing, so they are neither sent nor missed
    plain = settings_of(teacher, DecodingSection())
    assert plain.dropped.keys() <= {"temperature", "top_p"}


def test_options_take_settings_out_and_add_others() -> None:
    options = {"reasoning_effort": "minimal", "seed": None}
    settings = settings_of(section("openai", model="gpt-5-mini", options=options), DECODING)
    assert settings.sent["reasoning_effort"] == "minimal"
    assert not {"temperature", "top_p", "seed"} & settings.sent.keys()
    assert settings.dropped["seed"] == "options take it out"
    thinking = settings_of(section("gemini", options={"thinking_budget": 0}), DECODING)
    assert thinking.sent["thinking_config"] == {"thinking_budget": 0}


@each_provider
@pytest.mark.parametrize(
    ("behaviour", "outcome", "non_retryable", "billed"),
    [
        ("length", Outcome.TRUNCATED, False, False),
        ("filter", Outcome.FILTERED, False, False),
        ("context", Outcome.TRUNCATED, True, False),
        ("gone", Outcome.AUTH, True, False),
        (401, Outcome.AUTH, True, False),
        (403, Outcome.AUTH, True, False),
        (400, Outcome.TRANSPORT, True, False),
        (429, Outcome.QUOTA, False, False),
        (408, Outcome.TRANSPORT, False, False),
        (500, Outcome.TRANSPORT, False, False),
        (503, Outcome.TRANSPORT, False, False),
        # the request reached the provider, and may be on its bill
        ("garbage", Outcome.TRANSPORT, False, True),
        ("truncated", Outcome.TRANSPORT, False, True),
        ("drop", Outcome.TRANSPORT, False, True),
        ("cut", Outcome.TRANSPORT, False, True),
    ],
)
def test_every_failure_has_its_outcome_and_is_one_request(
    provider: str, behaviour: str | int, outcome: Outcome, non_retryable: bool, billed: bool
) -> None:
    with serve(lambda _: behaviour) as server:
        (reply,) = ask(section(provider, server))
    assert (reply.outcome, reply.non_retryable, reply.maybe_billed) == (
        outcome,
        non_retryable,
        billed,
    )
    assert len(server.requests) == 1  # the SDK re-sends nothing by itself
    assert reply.detail or reply.usage
    assert KEY not in repr(reply)


@each_provider
def test_a_refusal_is_settled(provider: str) -> None:
    with serve(lambda _: "refusal") as server:
        (reply,) = ask(section(provider, server))
    expected = Outcome.REFUSAL if provider == "openai" else Outcome.FILTERED
    assert reply.outcome is expected


@each_provider
def test_a_server_that_is_not_there_bills_nothing(provider: str) -> None:
    with serve() as server:
        pass
    (reply,) = ask(section(provider, server))
    assert (reply.outcome, reply.maybe_billed) == (Outcome.TRANSPORT, False)


@each_provider
def test_how_long_to_wait_is_read_from_the_answer(provider: str) -> None:
    with serve(lambda _: 429, retry_after="7") as server:
        assert ask(section(provider, server))[0].retry_after_s == 7.0
    with serve(lambda _: 429) as server:
        assert ask(section(provider, server))[0].retry_after_s is None


@pytest.mark.parametrize(
    ("headers", "pause"),
    [
        # a reset says when a limit is full again, which matters of one that is used up alone
        ({"remaining-requests": "150", "reset-requests": "7h12m0s",
          "remaining-tokens": "0", "reset-tokens": "6s"}, 6.0),
        ({"remaining-requests": "0", "reset-requests": "8s",
          "remaining-tokens": "0", "reset-tokens": "120ms"}, 8.0),
        ({"remaining-requests": "150", "reset-requests": "7h12m0s",
          "remaining-tokens": "10", "reset-tokens": "6s"}, None),
        ({"reset-requests": "7h12m0s"}, None),
    ],
)  # fmt: skip
def test_a_limit_that_is_not_used_up_is_not_waited_for(
    headers: dict[str, str], pause: float | None
) -> None:
    sent = {f"x-ratelimit-{name}": value for name, value in headers.items()}
    with serve(lambda _: 429, headers=sent) as server:
        assert ask(section("openai", server))[0].retry_after_s == pause
    with serve(lambda _: 429, headers=sent, retry_after="7") as server:
        assert ask(section("openai", server))[0].retry_after_s == 7.0


def test_gemini_says_how_long_to_wait_in_its_body() -> None:
    with serve(lambda _: 429, error_code="retry:34") as server:
        assert ask(section("gemini", server))[0].retry_after_s == 34.0


@pytest.mark.parametrize(
    ("text", "unit", "expected"),
    [("7", "retry-after", 7.0), ("250", "retry-after-ms", 0.25), ("1m30s", "x", 90.0),
     ("34s", "x", 34.0), ("120ms", "x", 0.12), ("1h", "x", 3600.0), ("0", "x", 0.0),
     ("Wed, 21 Oct 2026 07:28:00 GMT", "x", None), ("-3", "x", None), ("inf", "x", None),
     ("", "x", None), (None, "x", None), ("s", "x", None)],
)  # fmt: skip
def test_waiting_times_are_read_in_every_form(
    text: str | None, unit: str, expected: float | None
) -> None:
    assert seconds(text, unit) == expected


def test_a_spent_account_is_not_waited_for() -> None:
    with serve(lambda _: 429, error_code="insufficient_quota") as server:
        assert ask(section("openai", server))[0].outcome is Outcome.AUTH
    with serve(lambda _: 403, error_code="Arrearage") as server:
        assert ask(section("dashscope", server))[0].outcome is Outcome.AUTH


def test_dashscope_names_its_filter_in_an_error() -> None:
    for code in ("DataInspectionFailed", "data_inspection_failed"):
        with serve(lambda _: 400, error_code=code) as server:
            assert ask(section("dashscope", server))[0].outcome is Outcome.FILTERED


@each_provider
def test_the_key_is_in_no_reply(provider: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHER", "canary-of-another-key")
    with serve() as server:  # its complaint repeats the key
        (reply,) = ask(section(provider, server, api_key_env="OTHER"))
    assert reply.outcome is Outcome.AUTH
    assert "canary" not in repr(reply)


@each_provider
def test_a_missing_key_is_said_before_any_call(
    provider: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TEST_KEY")
    with pytest.raises(ConfigError, match="t needs its key in the environment variable TEST_KEY"):
        make_teacher(section(provider), DECODING)


@each_provider
@pytest.mark.parametrize("bad", ["canary\nX-Evil: 1", "canary key", "canary\u00e9", "ca\x00nary"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(
    provider: str, bad: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "\x00" in bad:
        monkeypatch.setattr("os.environ", {"TEST_KEY": bad})
    else:
        monkeypatch.setenv("TEST_KEY", bad)
    with pytest.raises(ConfigError, match="holds characters that no key has") as refused:
        make_teacher(section(provider), DECODING)
    assert "canary" not in str(refused.value)


@pytest.mark.parametrize("provider", ["gemini", "dashscope"])
def test_options_that_an_sdk_does_not_know_are_refused_before_any_call(provider: str) -> None:
    with pytest.raises(ConfigError, match="teachers: t: options are refused"):
        make_teacher(section(provider, options={"temprature": 1}), DECODING)


STRANGE = [
    "emoji 🦊 and 漢字, עברית, नमस्ते",
    "controls \x00\x01\x1f\x7f and \u2028\u2029 breaks",
    'quotes " \\ {prompt_text} {{}} </s> <|im_end|>',
    "e\u0301 \u202ertl\u202c \ufeffbom",
    "long " * 20_000,  # 100 kB
]


@each_provider
def test_any_text_arrives_as_it_was(provider: str) -> None:
    pairs = [Pair(str(n), PAIR.prompt, text, "b") for n, text in enumerate(STRANGE)]
    with serve() as server:
        teacher = section(provider, server)
        replies = ask(teacher, *pairs)
    for pair, reply, body in zip(pairs, replies, server.requests, strict=True):
        assert reply.outcome is Outcome.OK
        expected = [message["content"] for message in call_of(teacher, pair).messages]
        assert list(WIRES[provider].texts(body)) == expected


@each_provider
def test_a_slow_answer_does_not_hold_up_others(provider: str) -> None:
    """64 answers of 0.3 s each at once: they wait side by side."""
    with serve(latency_s=0.3) as server:
        teacher = section(provider, server)

        async def run() -> float:
            client = make_teacher(teacher, DECODING)
            loop = asyncio.get_running_loop()
            await client.ask(call_of(teacher))
            start = loop.time()
            await asyncio.gather(*(client.ask(call_of(teacher)) for _ in range(64)))
            await client.close()
            return loop.time() - start

        waves = asyncio.run(run()) / 0.3
    assert waves < 8  # one after the other it would be 64
