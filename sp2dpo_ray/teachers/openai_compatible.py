"""OpenAI's Chat Completions, and every endpoint that speaks it (vLLM, Ray Serve, a gateway).

In: a `Call`. Out: a `Reply`; SDK retries are off. A model of the reasoning families gets only what
it takes (no temperature, no top_p). The request goes through the SDK's generic `post`, which brings
the raw body for the journal and costs half of the typed call. Invariant: the key is given to the
SDK and appears nowhere else, not in an error's text either.
"""

from __future__ import annotations

import json
import re
from typing import Any

import httpx2
import openai

from sp2dpo_ray.config import DecodingSection, TeacherSection
from sp2dpo_ray.core.annotation import ANSWER_SCHEMA, Outcome
from sp2dpo_ray.core.calls import Call
from sp2dpo_ray.core.costs import Usage
from sp2dpo_ray.teachers.base import Reply, api_key, clean, never_sent, root_of, seconds
from sp2dpo_ray.teachers.settings import Settings, in_words_of

PATH = "/chat/completions"
NAMES = {
    "temperature": "temperature",
    "top_p": "top_p",
    "max_output_tokens": "max_completion_tokens",
    "seed": "seed",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "n": "n",
    "stop": "stop",
}
REASONING = re.compile(r"(o\d|gpt-5)")
NOT_FOR_REASONING = dict.fromkeys(
    ("temperature", "top_p", "frequency_penalty", "presence_penalty", "stop"),
    "reasoning models refuse it",
)
RESPONSE_FORMAT = {
    "type": "json_schema",
    "json_schema": {"name": "semantic_gap", "strict": True, "schema": ANSWER_SCHEMA},
}
RETRYABLE_STATUS = (408, 409, 425, 429)  # of the 4xx, those that a later attempt can change
HINTS = ("retry-after-ms", "retry-after")
LIMITS = ("requests", "tokens")


def settings_of(teacher: TeacherSection, decoding: DecodingSection) -> Settings:
    """What of Table 6 requests to this teacher carry."""
    refused = NOT_FOR_REASONING if REASONING.match(teacher.model) else None
    options = {"response_format": RESPONSE_FORMAT} | teacher.options
    return in_words_of(NAMES, decoding, options, refused)


def request_body(teacher: TeacherSection, settings: Settings, call: Call) -> dict[str, Any]:
    """The JSON body of one request, the same in interactive and in batch mode."""
    return {"model": teacher.model, "messages": call.messages, **settings.sent}


def make_client(
    teacher: TeacherSection, decoding: DecodingSection, key: str | None
) -> openai.AsyncOpenAI:
    """The SDK's client on aiohttp, which needs a third less CPU than httpx; no retries."""
    connections = teacher.limits.in_flight + 1
    return openai.AsyncOpenAI(
        # a local endpoint takes any key; the SDK wants one, and must not find one by itself
        api_key=key or "none",
        base_url=teacher.base_url or "https://api.openai.com/v1",
        max_retries=0,
        timeout=decoding.timeout_s,
        http_client=openai.DefaultAioHttpClient(
            # a redirect would be a second request
            follow_redirects=False,
            limits=httpx2.Limits(
                max_connections=connections, max_keepalive_connections=connections
            ),
        ),
    )


class OpenAITeacher:
    def __init__(self, teacher: TeacherSection, decoding: DecodingSection) -> None:
        self.settings = settings_of(teacher, decoding)
        self._section = teacher
        self._key = api_key(teacher)
        self._client = make_client(teacher, decoding, self._key)

    async def ask(self, call: Call) -> Reply:
        body = request_body(self._section, self.settings, call)
        try:
            response = await self._client.post(PATH, cast_to=httpx2.Response, body=body)
        except openai.APIStatusError as error:
            return failure(error, self._key)
        except openai.APIConnectionError as error:
            root = root_of(error)
            detail = clean(f"{type(root).__name__}: {root}", self._key)
            return Reply(Outcome.TRANSPORT, detail=detail, maybe_billed=not never_sent(root))
        return read_completion(response.text, response.headers.get("x-request-id"), self._key)

    async def close(self) -> None:
        await self._client.close()


def failure(error: openai.APIStatusError, key: str | None) -> Reply:
    """The outcome of an HTTP error."""
    headers = error.response.headers
    outcome = outcome_of(error.status_code, error.code, str(error.message))
    return Reply(
        outcome,
        detail=clean(f"{type(error).__name__}: {error}", key),
        request_id=error.request_id,
        retry_after_s=_pause(headers),
        non_retryable=is_final(error.status_code),
        raw=clean(error.response.text, key, length=None),
    )


def _pause(headers: httpx2.Headers) -> float | None:
    """How long to wait. A reset is when a limit is full again, which may be hours away, so it says
    something of a limit that is used up alone."""
    for name in HINTS:
        if (hint := seconds(headers.get(name), name)) is not None:
            return hint
    used_up = (name for name in LIMITS if headers.get(f"x-ratelimit-remaining-{name}") == "0")
    resets = [seconds(headers.get(f"x-ratelimit-reset-{name}")) for name in used_up]
    return max((reset for reset in resets if reset is not None), default=None)


def is_final(status: int) -> bool:
    """Whether an HTTP status says that the same request cannot fare better later."""
    return 400 <= status < 500 and status not in RETRYABLE_STATUS


def outcome_of(status: int, code: str | None, message: str) -> Outcome:
    """The outcome that an HTTP status and OpenAI's error code stand for."""
    if status in (401, 403, 404):
        return Outcome.AUTH  # this key cannot use this model here: no other call will fare better
    if status == 429:
        # a spent account answers 429 too, but waiting does not fill it
        return Outcome.AUTH if code == "insufficient_quota" else Outcome.QUOTA
    if code == "content_filter":
        return Outcome.FILTERED
    if code == "context_length_exceeded" or "maximum context length" in message:
        return Outcome.TRUNCATED  # this pair does not fit; the next one may
    if status == 400 and code in ("unsupported_parameter", "unsupported_value", "model_not_found"):
        return Outcome.AUTH
    return Outcome.TRANSPORT


def read_completion(raw: str, request_id: str | None, key: str | None) -> Reply:
    """The reply in the body of a chat completion."""
    raw = clean(raw, key, length=None)
    try:
        body = json.loads(raw)
        choice = body["choices"][0]
        message = choice["message"]
        text, refusal = message.get("content"), message.get("refusal")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        detail = f"unreadable body: {type(error).__name__}: {error}; it begins {raw[:80]!r}"
        return Reply(Outcome.TRANSPORT, detail=detail, maybe_billed=True, raw=raw)
    finish = choice.get("finish_reason")
    if refusal:
        outcome = Outcome.REFUSAL
    elif finish == "content_filter":
        outcome = Outcome.FILTERED
    elif finish == "length":
        outcome = Outcome.TRUNCATED
    else:
        outcome = Outcome.OK
    return Reply(
        outcome,
        text=text or "",
        detail=clean(refusal or "", key),
        request_id=request_id,
        served_model=body.get("model"),
        fingerprint=body.get("system_fingerprint"),
        usage=_usage(body.get("usage")),
        maybe_billed=not body.get("usage"),
        raw=raw,
    )


def _usage(usage: dict[str, Any] | None) -> Usage | None:
    if not usage:
        return None
    return Usage(
        prompt_tokens=usage.get("prompt_tokens") or 0,
        completion_tokens=usage.get("completion_tokens") or 0,
        reasoning_tokens=(usage.get("completion_tokens_details") or {}).get("reasoning_tokens")
        or 0,
        cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0,
    )
