"""The protocol between the batch runner and a provider's batch API.

In: calls. Out: a job, and later the replies by call key. A token that the provider keeps with the
job lets a lost answer to `submit` be found again. Invariant: `submit` makes one job at most.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from sp2dpo_ray.config import DecodingSection, TeacherSection
from sp2dpo_ray.core.calls import Call
from sp2dpo_ray.teachers.base import Reply

PROVIDERS = {
    "gemini": "sp2dpo_ray.teachers.gemini_batch:GeminiBatch",
    "openai": "sp2dpo_ray.teachers.openai_batch:OpenAIBatch",
}


class State(StrEnum):
    """Where a job stands: `ended` has results to take, all or a part of them."""

    RUNNING = "running"
    ENDED = "ended"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at a job showed."""

    state: State
    detail: str = ""


class BatchApi(Protocol):
    """most_requests, most_bytes: limits of one job's file."""

    most_requests: int
    most_bytes: int

    def line(self, call: Call) -> bytes:
        """The call as a line of the job's file."""
        ...

    async def submit(self, token: str, content: bytes) -> str:
        """Upload the file and create a job that carries the token; returns its id."""
        ...

    async def find(self, token: str) -> str | None:
        """The id of the job that carries the token."""
        ...

    async def look(self, job: str) -> Look:
        """Where the job stands."""
        ...

    async def take(self, job: str) -> Iterator[tuple[str, Reply]]:
        """The replies of an ended job by call key, in any order; keys may be missing."""
        ...

    def refused(self, error: Exception) -> bool | None:
        """Whether an error of this API is final, may pass (False), or is not its own (None)."""
        ...

    async def close(self) -> None:
        """Release connections."""
        ...


def make_batch_api(teacher: TeacherSection, decoding: DecodingSection) -> BatchApi:
    """The batch API of a teacher in batch mode. Raises ConfigError for a missing key."""
    place, _, name = PROVIDERS[teacher.provider].partition(":")
    factory: Any = getattr(importlib.import_module(place), name)
    api: BatchApi = factory(teacher, decoding)
    return api
