"""The protocol between the pipeline and a provider.

In: a `Call`. Out: a `Reply`, whatever happened: a provider turns every failure of its SDK into an
outcome and never raises for one. Invariant: one `ask` is one request on the wire; retrying belongs
to `retry`, so that each attempt can be recorded.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Protocol

from sp2dpo_ray.config import DecodingSection, TeacherSection
from sp2dpo_ray.core.annotation import Outcome
from sp2dpo_ray.core.calls import Call, TeacherIdentity
from sp2dpo_ray.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Reply:
    """What one attempt brought back.

    outcome: `ok` means that the teacher answered with `text`, which is read later.
    retry_after_s: what the provider asked us to wait. Token counts as the provider billed them.
    hopeless: asking the same again cannot end better, although the call is not settled.
    """

    outcome: Outcome
    text: str | None = None
    detail: str = ""
    request_id: str | None = None
    served_model: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    retry_after_s: float | None = None
    hopeless: bool = False


class Teacher(Protocol):
    """A model that annotates."""

    async def ask(self, call: Call) -> Reply:
        """One attempt of one call."""
        ...

    async def close(self) -> None:
        """Release connections."""
        ...


def identity(teacher: TeacherSection, decoding: DecodingSection) -> TeacherIdentity:
    """What of the configuration decides this teacher's answers, and so its call keys."""
    return TeacherIdentity(
        name=teacher.name,
        provider=teacher.provider,
        model=teacher.model,
        decoding={
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            "max_output_tokens": decoding.max_output_tokens,
            "seed": decoding.seed,
            "options": teacher.options,
        },
    )


def api_key(teacher: TeacherSection) -> str | None:
    """The teacher's key from this machine's environment; the key itself goes nowhere else."""
    if teacher.api_key_env is None:
        return None
    key = os.environ.get(teacher.api_key_env, "").strip()
    if not key:
        raise ConfigError(
            f"teachers: {teacher.name} needs its key in the environment variable "
            f"{teacher.api_key_env}, which is empty on this machine"
        )
    return key
