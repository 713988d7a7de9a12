"""OpenAI's Batch API: files of requests, answered within 24 hours at half the price.

In: calls. Out: replies by call key. Invariant: a request has the same body as in interactive mode,
so its answer stands under the same key.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai

from sp2dpo_ray.config import DecodingSection, TeacherSection
from sp2dpo_ray.core.annotation import Outcome
from sp2dpo_ray.core.calls import Call
from sp2dpo_ray.teachers.base import Reply, api_key, clean
from sp2dpo_ray.teachers.batch import Look, State
from sp2dpo_ray.teachers.openai_compatible import (
    PATH,
    is_final,
    make_client,
    outcome_of,
    read_completion,
    request_body,
    settings_of,
)

ENDPOINT = f"/v1{PATH}"
TOKEN = "sp2dpo"
STATES = {"completed": State.ENDED, "expired": State.ENDED, "cancelled": State.ENDED,
          "failed": State.FAILED}  # fmt: skip


class OpenAIBatch:
    most_requests = 50_000
    most_bytes = 200_000_000

    def __init__(self, teacher: TeacherSection, decoding: DecodingSection) -> None:
        self._section = teacher
        self._settings = settings_of(teacher, decoding)
        self._key = api_key(teacher)
        self._client = make_client(teacher, decoding, self._key)

    def line(self, call: Call) -> bytes:
        body = request_body(self._section, self._settings, call)
        line = {"custom_id": call.key, "method": "POST", "url": ENDPOINT, "body": body}
        return json.dumps(line).encode() + b"\n"

    async def submit(self, token: str, content: bytes) -> str:
        file = await self._client.files.create(
            file=(f"{token}.jsonl", content, "application/jsonl"), purpose="batch"
        )
        batch = await self._client.batches.create(
            input_file_id=file.id,
            endpoint="/v1/chat/completions",
            completion_window="24h",
            metadata={TOKEN: token},
        )
        return batch.id

    async def find(self, token: str) -> str | None:
        async for batch in self._client.batches.list(limit=100):
            if (batch.metadata or {}).get(TOKEN) == token:
                return batch.id
        return None

    async def look(self, job: str) -> Look:
        batch = await self._client.batches.retrieve(job)
        errors = (batch.errors.data if batch.errors else None) or []
        detail = "; ".join(f"line {error.line}: {error.message}" for error in errors[:3])
        return Look(STATES.get(batch.status, State.RUNNING), clean(detail, self._key))

    async def take(self, job: str) -> Iterator[tuple[str, Reply]]:
        batch = await self._client.batches.retrieve(job)
        files = [name for name in (batch.output_file_id, batch.error_file_id) if name]
        bodies = [(await self._client.files.content(name)).content for name in files]
        return (
            self._read(json.loads(line))
            for body in bodies
            for line in body.splitlines()
            if line.strip()
        )

    def _read(self, line: dict[str, Any]) -> tuple[str, Reply]:
        response = line.get("response") or {}
        body, status = response.get("body") or {}, response.get("status_code")
        if status == 200:
            reply = read_completion(json.dumps(body), response.get("request_id"), self._key)
            return line["custom_id"], reply
        error = body.get("error") or line.get("error") or {}
        message = str(error.get("message") or "no answer in the batch")
        outcome = outcome_of(status, error.get("code"), message) if status else Outcome.TRANSPORT
        detail = clean(f"batch: HTTP {status}: {message}", self._key)
        final = status is not None and is_final(status)
        return line["custom_id"], Reply(outcome, detail=detail, non_retryable=final)

    def refused(self, error: Exception) -> bool | None:
        if isinstance(error, openai.APIStatusError):
            return error.status_code in (400, 401, 403, 404)
        return False if isinstance(error, openai.APIError) else None

    async def close(self) -> None:
        await self._client.close()
