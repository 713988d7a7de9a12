"""Google's Gemini API, through google-genai.

In: a `Call`. Out: a `Reply`. Retries, automatic continuation and function calling of the SDK are
off: each of them would send a request that no journal knows of. The SDK hands over the raw body, so
nothing is parsed twice. Invariant: one `ask` is one request.
"""

from __future__ import annotations

import json
from typing import Any

import aiohttp
from google import genai
from google.genai import errors, types

from sp2dpo_ray.config import DecodingSection, TeacherSection
from sp2dpo_ray.core.annotation import ANSWER_SCHEMA, Outcome
from sp2dpo_ray.core.calls import Call
from sp2dpo_ray.core.costs import Usage
from sp2dpo_ray.teachers.base import Reply, api_key, clean, never_sent, seconds
from sp2dpo_ray.teachers.settings import Settings, in_words_of

API_VERSION = "v1beta"  # the version that Google's documents describe; the SDK's default moves
NAMES = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "max_output_tokens": "max_output_tokens",
    "seed": "seed",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "n": "candidate_count",
    "stop": "stop_sequences",
}
FILTERS = frozenset(
    {"SAFETY", "RECITATION", "PROHIBITED_CONTENT", "BLOCKLIST", "SPII", "MODEL_ARMOR"}
)
RETRYABLE_STATUS = (408, 409, 429)
TOO_LONG = ("exceeds the maximum number of tokens", "input token count")


def settings_of(teacher: TeacherSection, decoding: DecodingSection) -> Settings:
    """What of Table 6 requests to this teacher carry. `thinking_budget` among the options is the
    number of tokens for thinking; 0 turns it off."""
    options = dict(teacher.options)
    if (budget := options.pop("thinking_budget", None)) is not None:
        options["thinking_config"] = {"thinking_budget": budget}
    answer = {"response_mime_type": "application/json", "response_json_schema": ANSWER_SCHEMA}
    return in_words_of(NAMES, decoding, answer | options)


def make_client(
    teacher: TeacherSection, decoding: DecodingSection, key: str | None, session: Any = None
) -> genai.Client:
    """The SDK's client without retries; `session` is its aiohttp session, or None."""
    return genai.Client(
        api_key=key,
        http_options=types.HttpOptions(
            base_url=teacher.base_url,
            api_version=API_VERSION,
            timeout=round(decoding.timeout_s * 1000),
            retry_options=types.HttpRetryOptions(attempts=1),
            aiohttp_client=session,
        ),
    )


class GeminiTeacher:
    def __init__(self, teacher: TeacherSection, decoding: DecodingSection) -> None:
        self.settings = settings_of(teacher, decoding)
        self._section = teacher
        self._decoding = decoding
        self._key = api_key(teacher)
        self._session: aiohttp.ClientSession | None = None
        self._client: genai.Client | None = None
        # options that the SDK does not know are refused here, before any call
        self._configs: dict[str, types.GenerateContentConfig] = {}
        self._config("")

    async def ask(self, call: Call) -> Reply:
        system, user = (message["content"] for message in call.messages)
        if self._client is None:  # a session belongs to the loop that it is made on
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
            self._client = make_client(self._section, self._decoding, self._key, self._session)
        try:
            response = await self._client.aio.models.generate_content(
                model=self._section.model, contents=user, config=self._config(system)
            )
        except errors.APIError as error:
            return failure(error, self._key)
        except aiohttp.ClientError as error:
            detail = clean(f"{type(error).__name__}: {error}", self._key)
            return Reply(Outcome.TRANSPORT, detail=detail, maybe_billed=not never_sent(error))
        except ValueError as error:  # an HTTP error whose body is broken JSON loses its status
            detail = clean(f"unreadable error: {error}", self._key)
            return Reply(Outcome.TRANSPORT, detail=detail, maybe_billed=True)
        body = response.sdk_http_response.body if response.sdk_http_response else ""
        return read_response(body or "", self._key)

    def _config(self, system: str) -> types.GenerateContentConfig:
        if system not in self._configs:
            self._configs[system] = types.GenerateContentConfig(
                system_instruction=system,
                should_return_http_response=True,
                automatic_continuation=False,
                automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
                **self.settings.sent,
            )
        return self._configs[system]

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aio.aclose()
        if self._session is not None:
            await self._session.close()


def failure(error: errors.APIError, key: str | None) -> Reply:
    """The outcome of an HTTP error."""
    details = error.details if isinstance(error.details, dict) else {}
    inner: dict[str, Any] = details.get("error") or details
    parts = [part for part in inner.get("details") or [] if isinstance(part, dict)]
    delay = next((part["retryDelay"] for part in parts if "retryDelay" in part), None)
    headers = getattr(error.response, "headers", None) or {}
    reasons = {part.get("reason") for part in parts}
    return Reply(
        outcome_of(error.code, reasons, str(error.message)),
        detail=clean(f"{type(error).__name__}: {error}", key),
        retry_after_s=seconds(delay) or seconds(headers.get("Retry-After")),
        non_retryable=is_final(error.code),
        raw=clean(json.dumps(details), key, length=None),
    )


def is_final(status: int) -> bool:
    """Whether an HTTP status says that the same request cannot fare better later."""
    return 400 <= status < 500 and status not in RETRYABLE_STATUS


def outcome_of(status: int, reasons: set[str | None], message: str) -> Outcome:
    """The outcome that an HTTP status and Gemini's reasons stand for."""
    if status in (401, 403, 404) or "API_KEY_INVALID" in reasons or "API key" in message:
        return Outcome.AUTH
    if status == 429:
        return Outcome.QUOTA
    if status == 400:
        if any(words in message for words in TOO_LONG):
            return Outcome.TRUNCATED  # this pair does not fit; the next one may
        return Outcome.AUTH if "Unknown name" in message else Outcome.TRANSPORT
    return Outcome.TRANSPORT


def read_response(raw: str, key: str | None) -> Reply:
    """The reply in the body of a generateContent response."""
    raw = clean(raw, key, length=None)
    try:
        body = json.loads(raw)
        blocked = (body.get("promptFeedback") or {}).get("blockReason")
        candidate = (body.get("candidates") or [{}])[0]
        finish = candidate.get("finishReason")
        parts = (candidate.get("content") or {}).get("parts") or []
        text = "".join(part.get("text", "") for part in parts if not part.get("thought"))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        blocked, finish, text, body = None, None, "", {}
        problem = f"{type(error).__name__}: {error}"
    else:
        problem = "no candidate"
    if blocked or finish in FILTERS:
        outcome = Outcome.FILTERED
    elif finish == "MAX_TOKENS":
        outcome = Outcome.TRUNCATED
    elif finish is not None:
        outcome = Outcome.OK
    else:
        detail = f"unreadable body: {problem}; it begins {raw[:80]!r}"
        return Reply(Outcome.TRANSPORT, detail=detail, maybe_billed=True, raw=raw)
    usage = _usage(body.get("usageMetadata"))
    return Reply(
        outcome,
        text=text,
        detail="" if outcome is Outcome.OK else str(blocked or finish),
        request_id=body.get("responseId"),
        served_model=body.get("modelVersion"),
        usage=usage,
        maybe_billed=usage is None and blocked is None,
        raw=raw,
    )


def _usage(usage: dict[str, Any] | None) -> Usage | None:
    if not usage:
        return None
    thoughts = usage.get("thoughtsTokenCount") or 0
    return Usage(
        prompt_tokens=usage.get("promptTokenCount") or 0,
        completion_tokens=(usage.get("candidatesTokenCount") or 0) + thoughts,
        reasoning_tokens=thoughts,
        cached_tokens=usage.get("cachedContentTokenCount") or 0,
    )
