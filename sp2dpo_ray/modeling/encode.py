"""From pairs to tokens.

In: pairs and a tokenizer with a chat template. Out: `EncodedPair`s. Invariant: prompt and response
are encoded jointly, so token boundaries are those that the model sees, and both responses follow
the same prompt tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sp2dpo_ray.core.pairs import Pair
from sp2dpo_ray.errors import ConfigError, DataError


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """Token ids of a pair; `truncated` says whether any of them was cut."""

    prompt_id: str
    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    truncated: bool

    @property
    def longest_row(self) -> int:
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))


def encode_pairs(
    pairs: Sequence[Pair], tokenizer: Any, *, max_length: int, max_prompt_length: int
) -> list[EncodedPair]:
    """Encode pairs with the tokenizer's chat template.

    The prompt ends where its tokens and those of prompt + response part, as in TRL. A prompt over
    `max_prompt_length` loses its start, a response over the rest of `max_length` its end.
    Raises ConfigError without a chat template, DataError with the pair's id where it refuses.
    """
    if not tokenizer.chat_template:
        raise ConfigError("student.model: its tokenizer has no chat template; save one with it")
    texts: list[str] = []
    for pair in pairs:
        try:
            texts.append(_render(tokenizer, pair.prompt, add_generation_prompt=True))
            for response in (pair.chosen, pair.rejected):
                turn = {"role": "assistant", "content": response}
                texts.append(_render(tokenizer, [*pair.prompt, turn]))
        except Exception as error:  # templates raise what they like
            raise DataError(
                f"pair {pair.prompt_id}: the student's chat template refuses it: {error}"
            ) from error
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    return [
        _cut(pair.prompt_id, *ids[3 * i : 3 * i + 3], max_length, max_prompt_length)
        for i, pair in enumerate(pairs)
    ]


def _render(tokenizer: Any, turns: list[dict[str, str]], **options: Any) -> str:
    return str(tokenizer.apply_chat_template(turns, tokenize=False, **options))


def _cut(
    prompt_id: str,
    prompt: list[int],
    with_chosen: list[int],
    with_rejected: list[int],
    max_length: int,
    max_prompt_length: int,
) -> EncodedPair:
    shared = min(_common(prompt, with_chosen), _common(prompt, with_rejected))
    chosen, rejected = with_chosen[shared:], with_rejected[shared:]
    if not shared:
        raise DataError(
            f"pair {prompt_id}: its prompt and its responses have no common beginning once encoded"
        )
    kept = prompt[max(0, shared - max_prompt_length) : shared]
    room = max_length - len(kept)
    truncated = len(kept) < shared or max(len(chosen), len(rejected)) > room
    return EncodedPair(prompt_id, kept, chosen[:room], rejected[:room], truncated)


def _common(one: list[int], other: list[int]) -> int:
    length = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        length += 1
    return length
