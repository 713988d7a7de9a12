"""The protocol between the pipeline and a provider.

In: a `Call`. Out: a `Reply`, whatever happened: a provider turns every failure of its SDK into an
outcome and never raises for one. Invariant: one `ask` is one request on the wire; retrying belongs
to `retry`, so that each attempt can be recorded.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sp2dpo_ray.config import DecodingSection, TeacherSection
from sp2dpo_ray.core.annotation import Outcome
from sp2dpo_ray.core.artifact import read_manifest
from sp2dpo_ray.core.calls import Call, TeacherIdentity
from sp2dpo_ray.core.costs import Usage
from sp2dpo_ray.core.hashing import sha256_once
from sp2dpo_ray.errors import ArtifactError, ConfigError
from sp2dpo_ray.teachers.settings import Settings

DETAIL_LENGTH = 300
SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True)
class Reply:
    """What one attempt brought back.

    outcome: `ok` means that the teacher answered with `text`, which is read later.
    usage: token counts as the provider billed them; None where it sent none.
    retry_after_s: what the provider asked us to wait.
    non_retryable: asking the same again cannot end better, although the call is not settled.
    maybe_billed: the request may have been worked on, although no usage came back.
    raw: the body of the answer as it came.
    """

    outcome: Outcome
    text: str | None = None
    detail: str = ""
    request_id: str | None = None
    served_model: str | None = None
    fingerprint: str | None = None
    usage: Usage | None = None
    retry_after_s: float | None = None
    non_retryable: bool = False
    maybe_billed: bool = False
    raw: str | None = None


class Teacher(Protocol):
    """A model that annotates. `settings` is what of Table 6 its requests carry, and what not."""

    settings: Settings

    async def ask(self, call: Call) -> Reply:
        """One attempt of one call."""
        ...

    async def close(self) -> None:
        """Release connections."""
        ...


def identity(teacher: TeacherSection, decoding: DecodingSection) -> TeacherIdentity:
    """What of the configuration decides this teacher's answers, and so its call keys."""
    settings, model = decoding.of_answers | {"options": teacher.options}, teacher.model
    if teacher.is_predictor:  # it decodes nothing, and is what its files are, wherever they lie
        settings, model = {}, _digest(Path(teacher.model).expanduser().resolve())
    script = teacher.options.get("script")
    if teacher.provider == "scripted" and script is not None:  # as is a file of answers
        settings |= {"options": teacher.options | {"script": _hash_of(teacher, Path(script))}}
    return TeacherIdentity(teacher.name, teacher.provider, model, settings)


def _digest(folder: Path) -> str:
    manifest = read_manifest(folder)
    if manifest is None:
        raise ArtifactError(f"{folder}: holds no predictor; run: sp2dpo distill, or name another")
    return manifest.digest


def _hash_of(teacher: TeacherSection, script: Path) -> str:
    if not script.is_file():
        raise ConfigError(f"teachers: {teacher.name}: options.script: no file {str(script)!r}")
    return sha256_once(script)


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
    if not key.isascii() or not key.isprintable() or " " in key:
        # HTTP libraries show a header that they cannot send, and with it the key
        raise ConfigError(
            f"teachers: {teacher.name}: the environment variable {teacher.api_key_env} holds "
            "characters that no key has (a line break or a quotation mark from copying?)"
        )
    return key


def clean(text: str, key: str | None, length: int | None = DETAIL_LENGTH) -> str:
    """Text of a provider without our key, which some repeat in their complaints."""
    return (text.replace(key, "***") if key else text)[:length]


def seconds(value: str | None, unit: str = "s") -> float | None:
    """Seconds of a header or hint: `7`, `0.5`, `1m30s`, `34s`, `120ms`; None for anything else.

    unit: a name that ends in `ms` makes a plain number milliseconds.
    """
    if not value:
        return None
    try:
        plain = float(value)
        found = plain / 1000 if unit.endswith("ms") else plain
    except ValueError:  # may be a date, too; our own backoff serves then
        if not re.fullmatch(r"(?:\d+(?:\.\d+)?(?:ms|h|m|s))+", value):
            return None
        parts = re.findall(r"(\d+(?:\.\d+)?)(ms|h|m|s)", value)
        found = sum(float(number) * SECONDS[name] for number, name in parts)
    return found if 0 <= found < float("inf") else None


def root_of(error: BaseException) -> BaseException:
    """What lies under the SDK's and the transport's wrappers."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def never_sent(root: BaseException) -> bool:
    """Whether the connection failed before the request was on its way."""
    return isinstance(root, ConnectionRefusedError) or "Connector" in type(root).__name__
