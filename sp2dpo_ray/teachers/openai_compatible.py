"""OpenAI's Chat Completions, and every endpoint that speaks it (vLLM, Ray Serve, a gateway).

In: a `Call`. Out: a `Reply`; SDK retries are off. A model of the reasoning families gets only what
it takes (no temperature, no top_p), other defaults can be dropped with `options: {name: null}`.
Invariant: the key is given to the SDK and appears nowhere else, not in an error's text either.
"""

from __future__ import annotations

import re
from typing import Any

import openai

from sp2dpo_ray.config import DecodingSection, TeacherSection
from sp2dpo_ray.core.annotation import ANSWER_SCHEMA, Outcome
from sp2dpo_ray.core.calls import Call
from sp2dpo_ray.teachers.base import Reply, api_key

REASONING = re.compile(r"(o\d|gpt-5)")
NO_SAMPLING_OPTIONS = ("temperature", "top_p")
PASSING_STATUS = (408, 409, 425, 429)  # of the 4xx, those that a later attempt can change
DETAIL_LENGTH = 300


def request_options(teacher: TeacherSection, decoding: DecodingSection) -> dict[str, Any]:
    """The options of every request to this teacher (paper Table 6, as far as the API has them)."""
    options: dict[str, Any] = {
        "model": teacher.model,
        "temperature": decoding.temperature,
        "top_p": decoding.top_p,
        "max_completion_tokens": decoding.max_output_tokens,
        "seed": decoding.seed,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "semantic_gap", "strict": True, "schema": ANSWER_SCHEMA},
        },
    }
    if REASONING.match(teacher.model):
        for name in NO_SAMPLING_OPTIONS:
            del options[name]
    options.update(teacher.options)
    return {name: value for name, value in options.items() if value is not None}


class OpenAITeacher:
    def __init__(self, teacher: TeacherSection, decoding: DecodingSection) -> None:
        self._options = request_options(teacher, decoding)
        self._key = api_key(teacher)
        self._client = openai.AsyncOpenAI(
            # a local endpoint takes any key; the SDK wants one, and must not find one by itself
            api_key=self._key or "none",
            base_url=teacher.base_url or "https://api.openai.com/v1",
            max_retries=0,
            timeout=decoding.timeout_s,
        )

    async def ask(self, call: Call) -> Reply:
        create: Any = self._client.chat.completions.with_raw_response.create
        try:
            response = await create(messages=call.messages, **self._options)
            completion = response.parse()
        except openai.APIError as error:
            return self._failure(error)
        except ValueError as error:  # a body that is no JSON
            return Reply(Outcome.TRANSPORT, detail=self._clean(f"unreadable body: {error}"))
        if not getattr(completion, "choices", None):
            return Reply(Outcome.TRANSPORT, detail="the answer holds no choice")
        return _reply(completion, response.headers.get("x-request-id"))

    async def close(self) -> None:
        await self._client.close()

    def _failure(self, error: openai.APIError) -> Reply:
        detail = self._clean(f"{type(error).__name__}: {error}")
        if not isinstance(error, openai.APIStatusError):
            return Reply(Outcome.TRANSPORT, detail=detail)
        return Reply(
            _outcome(error),
            detail=detail,
            request_id=error.request_id,
            retry_after_s=_seconds(error.response.headers.get("retry-after")),
            hopeless=400 <= error.status_code < 500 and error.status_code not in PASSING_STATUS,
        )

    def _clean(self, text: str) -> str:
        text = text.replace(self._key, "***") if self._key else text
        return text[:DETAIL_LENGTH]


def _outcome(error: openai.APIStatusError) -> Outcome:
    if error.status_code in (401, 403, 404):
        return Outcome.AUTH  # this key cannot use this model here: no other call will fare better
    if error.status_code == 429:
        # a spent account answers 429 too, but waiting does not fill it
        return Outcome.AUTH if error.code == "insufficient_quota" else Outcome.QUOTA
    if error.code == "content_filter":
        return Outcome.FILTERED
    if error.status_code == 400 and error.code in ("unsupported_parameter", "unsupported_value"):
        return Outcome.AUTH
    return Outcome.TRANSPORT


def _reply(completion: Any, request_id: str | None) -> Reply:
    choice = completion.choices[0]
    text, refusal = choice.message.content, choice.message.refusal
    if refusal:
        outcome = Outcome.REFUSAL
    elif choice.finish_reason == "content_filter":
        outcome = Outcome.FILTERED
    elif choice.finish_reason == "length":
        outcome = Outcome.TRUNCATED
    else:
        outcome = Outcome.OK
    usage = completion.usage
    return Reply(
        outcome,
        text=text or "",
        detail=(refusal or "")[:DETAIL_LENGTH],
        request_id=request_id,
        served_model=completion.model,
        prompt_tokens=usage.prompt_tokens if usage else None,
        completion_tokens=usage.completion_tokens if usage else None,
    )


def _seconds(value: str | None) -> float | None:
    try:
        seconds = float(value or "")
    except ValueError:  # the header may hold a date; our own backoff serves then
        return None
    return seconds if 0 <= seconds < float("inf") else None
