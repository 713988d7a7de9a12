"""The three wire formats that teachers speak, from the server's side.

A `Wire` knows where requests arrive, what a key looks like, and how answers, errors and filters are
written. In: request bodies. Out: response bodies.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

ANSWER = json.dumps(
    {
        "semantic_gap_category": "Factuality",
        "semantic_gap_magnitude": 0.8,
        "semantic_gap_confidence": 0.5,
    }
)
Body = dict[str, Any]


@dataclass(frozen=True)
class Wire:
    """path: route of a request. auth: header and prefix of the key. texts: system and user text of
    a request. success(model, text, finish): an answer; finish is stop, length, filter or refusal.
    error(status, code): an error's body."""

    path: str
    auth: tuple[str, str]
    texts: Callable[[Body], tuple[str, str]]
    success: Callable[[str, str, str], Body]
    error: Callable[[int, str | None], Body]


def openai_texts(body: Body) -> tuple[str, str]:
    system, user = (message["content"] for message in body["messages"])
    return system, user


def openai_success(model: str, text: str, finish: str) -> Body:
    message: Body = {"role": "assistant", "content": text}
    if finish == "refusal":
        message |= {"content": None, "refusal": "I will not judge this"}
    elif finish != "stop":
        message["content"] = "" if finish == "length" else None
    reason = {"stop": "stop", "refusal": "stop", "length": "length", "filter": "content_filter"}
    return {
        "id": "c-1",
        "object": "chat.completion",
        "created": 0,
        "model": f"{model}-served",
        "system_fingerprint": "fp-1",
        "choices": [{"index": 0, "message": message, "finish_reason": reason[finish]}],
        "usage": {
            "prompt_tokens": 100,
            "completion_tokens": 64 if finish == "length" else 20,
            "total_tokens": 120,
            "completion_tokens_details": {"reasoning_tokens": 64 if finish == "length" else 0},
        },
    }


def openai_error(status: int, code: str | None) -> Body:
    message = f"status {status}"
    if code == "context_length_exceeded":
        message = "This model's maximum context length is 10 tokens"
    return {"error": {"message": message, "type": "error", "param": None, "code": code}}


def gemini_texts(body: Body) -> tuple[str, str]:
    return body["systemInstruction"]["parts"][0]["text"], body["contents"][0]["parts"][0]["text"]


def gemini_success(model: str, text: str, finish: str) -> Body:
    if finish == "refusal":  # Gemini has no refusal; a blocked prompt is the nearest
        return {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "responseId": "r-1"}
    candidate: Body = {
        "finishReason": {"stop": "STOP", "length": "MAX_TOKENS"}.get(finish, "SAFETY")
    }
    if finish == "stop":
        parts = [{"text": "thinking", "thought": True}, {"text": text}]
        candidate["content"] = {"role": "model", "parts": parts}
    return {
        "candidates": [candidate],
        "usageMetadata": {
            "promptTokenCount": 100,
            "candidatesTokenCount": 0 if finish == "length" else 15,
            "thoughtsTokenCount": 64 if finish == "length" else 5,
        },
        "modelVersion": f"{model}-served",
        "responseId": "r-1",
    }


def gemini_error(status: int, code: str | None) -> Body:
    message, details = f"status {status}", []
    if code == "context_length_exceeded":
        message = "The input token count (99) exceeds the maximum number of tokens allowed (10)."
    elif code == "wrong_key":
        message = "API key not valid. Please pass a valid API key."
        details = [
            {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}
        ]
    elif code and code.startswith("retry:"):
        kind = "type.googleapis.com/google.rpc.RetryInfo"
        details = [{"@type": kind, "retryDelay": f"{code[6:]}s"}]
    return {"error": {"code": status, "message": message, "status": "X", "details": details}}


def dashscope_texts(body: Body) -> tuple[str, str]:
    return openai_texts(body["input"])


def dashscope_success(model: str, text: str, finish: str) -> Body:
    reason = {"stop": "stop", "length": "length"}.get(finish, "content_filter")
    message = {"role": "assistant", "content": text if finish == "stop" else ""}
    return {
        "request_id": "r-1",
        "code": "",
        "output": {"choices": [{"finish_reason": reason, "message": message}]},
        "usage": {
            "input_tokens": 100,
            "output_tokens": 64 if finish == "length" else 20,
            "total_tokens": 120,
            "output_tokens_details": {"reasoning_tokens": 64 if finish == "length" else 0},
        },
    }


def dashscope_error(status: int, code: str | None) -> Body:
    codes = {429: "Throttling.RateQuota", 401: "InvalidApiKey", 404: "ModelNotFound"}
    name, message = code or codes.get(status, "InternalError"), f"status {status}"
    if code == "context_length_exceeded":
        name, message = "InvalidParameter", "Range of input length should be [1, 10]"
    return {"code": name, "message": message, "request_id": "r-2"}


WIRES: dict[str, Wire] = {
    "openai": Wire(
        "/v1/chat/completions", ("Authorization", "Bearer "),
        openai_texts, openai_success, openai_error,
    ),
    "gemini": Wire(
        "/v1beta/models/{model}:generateContent", ("x-goog-api-key", ""),
        gemini_texts, gemini_success, gemini_error,
    ),
    "dashscope": Wire(
        "/api/v1/services/aigc/text-generation/generation", ("Authorization", "Bearer "),
        dashscope_texts, dashscope_success, dashscope_error,
    ),
}  # fmt: skip
BASE_URLS = {"openai": "/v1", "gemini": "", "dashscope": "/api/v1"}
