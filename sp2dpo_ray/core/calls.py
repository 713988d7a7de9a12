"""One call: a pair, a teacher, a variant, and the key under which its answer is kept.

Invariant: the key covers everything that can change the answer and nothing else, so an answer that
is on record is never asked (and paid) for again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sp2dpo_ray.core.annotation import ANSWER_SCHEMA
from sp2dpo_ray.core.hashing import sha256_hex
from sp2dpo_ray.core.pairs import Pair
from sp2dpo_ray.core.prompts import Message, PromptSet
from sp2dpo_ray.core.redaction import redact_pair

# raised when the meaning of a call changes without its messages or options changing
PROTOCOL_VERSION = 1


@dataclass(frozen=True, slots=True)
class TeacherIdentity:
    """What of a teacher decides its answers."""

    name: str
    provider: str
    model: str
    decoding: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Call:
    """One request for (pair, teacher, variant)."""

    key: str
    prompt_id: str
    teacher: str
    variant: str
    pair: Pair
    messages: list[Message]


def call_key(teacher: TeacherIdentity, messages: list[Message]) -> str:
    """SHA-256 of provider, model, messages, schema, decoding options and protocol version.

    The teacher's name in the configuration is left out: renaming it costs nothing.
    """
    return sha256_hex(
        [
            PROTOCOL_VERSION,
            teacher.provider,
            teacher.model,
            messages,
            ANSWER_SCHEMA,
            teacher.decoding,
        ]
    )


def calls_of(
    pair: Pair, teachers: tuple[TeacherIdentity, ...], prompts: PromptSet, *, redact: bool = False
) -> Iterator[Call]:
    """All calls of one pair, teacher by teacher, variant by variant.

    redact: mask what redaction finds; the key is that of the masked text, which is what is sent.
    """
    if redact:
        pair, _ = redact_pair(pair)
    rendered = {variant: prompts.messages(variant, pair) for variant in prompts.systems}
    for teacher in teachers:
        for variant, messages in rendered.items():
            key = call_key(teacher, messages)
            yield Call(key, pair.prompt_id, teacher.name, variant, pair, messages)
