"""Alibaba's DashScope (Qwen), through its SDK's version-2 client.

In: a `Call`. Out: a `Reply`. The request is built and sent by the client's own protocol and
transport, which bring the raw body for the journal; its retries are off. `json_object` is the
structured output that all its models take; the prompts ask for the exact keys. Invariant: one `ask`
is one request.
"""

from __future__ import annotations

import json
import warnings
from typing import Any

import dashscope
import httpx
from dashscope.v2 import errors
from httpx_aiohttp import HttpxAiohttpClient

from sp2dpo_ray.config import DecodingSection, TeacherSection
from sp2dpo_ray.core.annotation import Outcome
from sp2dpo_ray.core.calls import Call
from sp2dpo_ray.core.costs import Usage
from sp2dpo_ray.teachers.base import Reply, api_key, clean, never_sent, root_of, seconds
from sp2dpo_ray.teachers.settings import Settings, in_words_of

BASE_URL = "https://dashscope.aliyuncs.com/api/v1"
NAMES = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "max_output_tokens": "max_tokens",
    "seed": "seed",
    "presence_penalty": "presence_penalty",
    "repetition_penalty": "repetition_penalty",
    "n": "n",
    "stop": "stop",
}
RETRYABLE_STATUS = (408, 409, 429)
FILTER = "datainspectionfailed"
TOO_LONG = ("Range of input length", "maximum context length", "input length")


def settings_of(teacher: TeacherSection, decoding: DecodingSection) -> Settings:
    """What of Table 6 requests to this teacher carry."""
    options = {"response_format": {"type": "json_object"}} | teacher.options
    return in_words_of(NAMES, decoding, options)


class DashScopeTeacher:
    def __init__(self, teacher: TeacherSection, decoding: DecodingSection) -> None:
        self.settings = settings_of(teacher, decoding)
        self._model = teacher.model
        self._key = api_key(teacher)
        connections = teacher.limits.in_flight + 1
        # on aiohttp: with 64 requests in flight httpx's own pool costs ten times the CPU
        self._http = HttpxAiohttpClient(
            headers={"Authorization": f"Bearer {self._key}"},
            timeout=decoding.timeout_s,
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
        )
        with warnings.catch_warnings():  # it would like a workspace; base_url names one
            warnings.simplefilter("ignore")
            self._client = dashscope.AsyncClient(
                api_key=self._key,
                base_url=teacher.base_url or BASE_URL,
                protocol="native",
                max_retries=0,
                http_client=self._http,
            )
        # options that the SDK does not know are refused here, before any call
        self._client.protocol.build_chat_request(
            model=self._model, messages=[{"role": "user", "content": "json"}], **self.settings.sent
        )

    async def ask(self, call: Call) -> Reply:
        request = self._client.protocol.build_chat_request(
            model=self._model, messages=call.messages, **self.settings.sent
        )
        try:
            response = await self._client.transport.request(
                "POST",
                request.path,
                json=request.body,
                headers=request.headers or None,
                base_url=self._client.config.protocol_base_url,
                sdk_module="aigc",
                timeout=None,
            )
        except (errors.APIConnectionError, httpx.HTTPError) as error:
            root = root_of(error)
            detail = clean(f"{type(root).__name__}: {root}", self._key)
            return Reply(Outcome.TRANSPORT, detail=detail, maybe_billed=not never_sent(root))
        if response.status_code >= 400:
            return failure(response.status_code, response.text, response.headers, self._key)
        return read_generation(response.text, response.headers, self._key)

    async def close(self) -> None:
        await self._client.aclose()
        await self._http.aclose()


def failure(status: int, raw: str, headers: Any, key: str | None) -> Reply:
    """The outcome of an HTTP error."""
    raw = clean(raw, key, length=None)
    try:
        body = json.loads(raw)
    except ValueError:
        body = {}
    body = body if isinstance(body, dict) else {}
    code, message = str(body.get("code") or ""), str(body.get("message") or raw)
    return Reply(
        _outcome(status, code, message),
        detail=clean(f"HTTP {status} {code}: {message}", key),
        request_id=body.get("request_id") or headers.get("x-request-id"),
        retry_after_s=seconds(headers.get("retry-after")),
        non_retryable=400 <= status < 500 and status not in RETRYABLE_STATUS,
        raw=raw,
    )


def _outcome(status: int, code: str, message: str) -> Outcome:
    if code.lower().replace("_", "") == FILTER:
        return Outcome.FILTERED
    # a spent account (Arrearage) answers 400 or 403; waiting does not fill it
    if status in (401, 403, 404) or code == "Arrearage":
        return Outcome.AUTH
    if status == 429 or code.startswith("Throttling"):
        return Outcome.QUOTA
    if status == 400 and any(words in message for words in TOO_LONG):
        return Outcome.TRUNCATED  # this pair does not fit; the next one may
    return Outcome.TRANSPORT


def read_generation(raw: str, headers: Any, key: str | None) -> Reply:
    """The reply in the body of a text generation."""
    raw = clean(raw, key, length=None)
    try:
        body = json.loads(raw)
        if body.get("code"):  # an error under status 200
            return failure(200, raw, headers, key)
        choice = body["output"]["choices"][0]
        text, finish = choice["message"].get("content"), choice.get("finish_reason")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        detail = f"unreadable body: {type(error).__name__}: {error}; it begins {raw[:80]!r}"
        return Reply(Outcome.TRANSPORT, detail=detail, maybe_billed=True, raw=raw)
    outcome = {"length": Outcome.TRUNCATED, "content_filter": Outcome.FILTERED}.get(
        finish, Outcome.OK
    )
    usage = _usage(body.get("usage"))
    return Reply(
        outcome,
        text=text or "",
        request_id=body.get("request_id") or headers.get("x-request-id"),
        served_model=body.get("model"),  # mostly not said; the requested id is in the configuration
        usage=usage,
        maybe_billed=usage is None,
        raw=raw,
    )


def _usage(usage: dict[str, Any] | None) -> Usage | None:
    if not usage:
        return None
    details = usage.get("output_tokens_details") or {}
    return Usage(
        prompt_tokens=usage.get("input_tokens") or 0,
        completion_tokens=usage.get("output_tokens") or 0,
        reasoning_tokens=details.get("reasoning_tokens") or 0,
        cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0,
    )
