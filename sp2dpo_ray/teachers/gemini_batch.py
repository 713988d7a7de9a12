"""Gemini's batch mode: files of requests, answered within a day or two at half the price.

In: calls. Out: replies by call key. Invariant: a request says the same as in interactive mode, so
its answer stands under the same key.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import aiohttp
from google.genai import errors, types

from sp2dpo_ray.config import DecodingSection, TeacherSection
from sp2dpo_ray.core.calls import Call
from sp2dpo_ray.teachers.base import Reply, api_key, clean
from sp2dpo_ray.teachers.batch import Look, State
from sp2dpo_ray.teachers.gemini import (
    is_final,
    make_client,
    outcome_of,
    read_response,
    settings_of,
)

# an expired job has no results, so all of its calls come back as missing; that costs nothing
ENDED = ("SUCCEEDED", "PARTIALLY_SUCCEEDED", "EXPIRED", "CANCELLED")
# a line's error carries a code of gRPC: its HTTP status, where a later attempt fares no better
RPC_STATUS = {3: 400, 5: 404, 7: 403, 8: 429, 9: 400, 11: 400, 16: 401}


class GeminiBatch:
    most_requests = 50_000
    most_bytes = 200_000_000

    def __init__(self, teacher: TeacherSection, decoding: DecodingSection) -> None:
        self._section = teacher
        sent = dict(settings_of(teacher, decoding).sent)
        thinking = sent.pop("thinking_config", None)
        self._config = {_camel(name): value for name, value in sent.items()}
        if thinking:
            self._config["thinkingConfig"] = {_camel(k): v for k, v in thinking.items()}
        self._key = api_key(teacher)
        self._client = make_client(teacher, decoding, self._key)

    def line(self, call: Call) -> bytes:
        system, user = (message["content"] for message in call.messages)
        request = {
            "systemInstruction": {"parts": [{"text": system}]},
            "contents": [{"role": "user", "parts": [{"text": user}]}],
            "generationConfig": self._config,
        }
        return json.dumps({"key": call.key, "request": request}).encode() + b"\n"

    async def submit(self, token: str, content: bytes) -> str:
        file = await self._client.aio.files.upload(
            file=io.BytesIO(content),
            config=types.UploadFileConfig(display_name=token, mime_type="jsonl"),
        )
        job = await self._client.aio.batches.create(
            model=self._section.model,
            src=file.name or "",
            config=types.CreateBatchJobConfig(display_name=token),
        )
        return job.name or ""

    async def find(self, token: str) -> str | None:
        async for job in await self._client.aio.batches.list(config={"page_size": 100}):
            if job.display_name == token:
                return job.name
        return None

    async def look(self, job: str) -> Look:
        state = (await self._job(job)).state
        name = (state.name if state else "").removeprefix("JOB_STATE_")
        if name == "FAILED":
            return Look(State.FAILED, "the job failed; the provider's console says why")
        return Look(State.ENDED if name in ENDED else State.RUNNING)

    async def _job(self, job: str) -> types.BatchJob:
        return await self._client.aio.batches.get(name=job)

    async def take(self, job: str) -> Iterator[tuple[str, Reply]]:
        dest = (await self._job(job)).dest
        if dest is None or not dest.file_name:
            return iter(())
        body = await self._client.aio.files.download(file=dest.file_name)
        return (self._read(json.loads(line)) for line in body.splitlines() if line.strip())

    def _read(self, line: dict[str, Any]) -> tuple[str, Reply]:
        if isinstance(response := line.get("response"), dict):
            return line["key"], read_response(json.dumps(response), self._key)
        error = line.get("error") or line.get("status") or line
        told = error if isinstance(error, dict) else {"message": error}
        message, code = told.get("message"), told.get("code")
        status = RPC_STATUS.get(code, code) if isinstance(code, int) else 500
        return line["key"], Reply(
            outcome_of(status, set(), str(message)),
            detail=clean(f"batch: {message}", self._key),
            non_retryable=is_final(status),
        )

    def refused(self, error: Exception) -> bool | None:
        if isinstance(error, errors.APIError):
            return error.code in (400, 401, 403, 404)
        return False if isinstance(error, aiohttp.ClientError | TimeoutError) else None

    async def close(self) -> None:
        await self._client.aio.aclose()


def _camel(name: str) -> str:
    """The name as the REST interface writes it."""
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)
