"""Tokens and money of a call: what it can cost at most, and what it did cost.

In: messages, token counts, prices in USD for a million tokens. Out: USD. Invariant: `worst` bounds
`cost`, so a budget that counts calls in flight at their worst is never passed.
"""

from __future__ import annotations

from dataclasses import dataclass

from sp2dpo_ray.core.annotation import ANSWER_SCHEMA
from sp2dpo_ray.core.hashing import canonical_json
from sp2dpo_ray.core.prompts import Message

PER_MILLION = 1e-6
BYTES_PER_TOKEN = 4.0  # of English text; the guess until answers have told the true ratio
# what providers add: role marks around each message, and the schema where they write it out
TOKENS_PER_MESSAGE = 16
SCHEMA_BYTES = len(canonical_json(ANSWER_SCHEMA))


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one answer as the provider counted them.

    completion_tokens: all that is paid as output, reasoning_tokens among them; cached_tokens: the
    part of prompt_tokens that the provider had kept.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    cached_tokens: int = 0

    @property
    def total(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Price:
    """USD for a million tokens."""

    input: float
    output: float
    cached_input: float

    def cost(self, usage: Usage) -> float:
        """What an answer cost."""
        fresh = usage.prompt_tokens - usage.cached_tokens
        return PER_MILLION * (
            fresh * self.input
            + usage.cached_tokens * self.cached_input
            + usage.completion_tokens * self.output
        )

    def worst(self, messages: list[Message], max_output_tokens: int) -> float:
        """Most that one attempt can cost."""
        dearer = max(self.input, self.cached_input)
        return PER_MILLION * (
            most_prompt_tokens(messages) * dearer + max_output_tokens * self.output
        )


def text_bytes(messages: list[Message]) -> int:
    """Length of the messages in UTF-8."""
    return sum(len(message["content"].encode("utf-8", "surrogatepass")) for message in messages)


def most_prompt_tokens(messages: list[Message]) -> int:
    """An upper bound: every token of a byte-level vocabulary stands for at least one byte."""
    return text_bytes(messages) + SCHEMA_BYTES + TOKENS_PER_MESSAGE * len(messages)


def likely_prompt_tokens(messages: list[Message], bytes_per_token: float = BYTES_PER_TOKEN) -> int:
    """A guess, for pacing and plans; money is never reserved on it."""
    return round((text_bytes(messages) + SCHEMA_BYTES) / bytes_per_token)
