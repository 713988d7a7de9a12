"""From pairs to tokens, and from tokens to padded batches.

In: pairs and a tokenizer with a chat template. Out: `EncodedPair`, and `Batch` tensors of two rows
a pair. Invariant: prompt and response are encoded jointly, so token boundaries are those that the
model sees, and both responses follow the same prompt tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

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


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows 0..P-1 are prompt + chosen, rows P..2P-1 prompt + rejected, padded on the right.

    ids_RT, mask_RT: token ids and attention mask. response_RT: True on response tokens.
    index: the pairs' places in the list that the batch was made of.
    """

    ids_RT: Tensor
    mask_RT: Tensor
    response_RT: Tensor
    index: list[int]

    def to(self, device: torch.device) -> Batch:
        return Batch(
            self.ids_RT.to(device), self.mask_RT.to(device), self.response_RT.to(device), self.index
        )


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


def plan_batches(
    encoded: Sequence[EncodedPair], order: Sequence[int], tokens_per_batch: int
) -> list[list[int]]:
    """Group the pairs named in `order` so that no padded batch exceeds the token budget.

    Pairs of like length go together. A pair over the budget by itself gets a batch of its own.
    """
    ranked = sorted(order, key=lambda i: (encoded[i].longest_row, i), reverse=True)
    batches: list[list[int]] = []
    widest = 0
    for i in ranked:
        if batches and 2 * widest * (len(batches[-1]) + 1) <= tokens_per_batch:
            batches[-1].append(i)
        else:
            batches.append([i])
            widest = encoded[i].longest_row
    return batches


def collate(encoded: Sequence[EncodedPair], index: list[int], pad_id: int) -> Batch:
    """The two-row layout of a batch; shapes (2P, T)."""
    rows = [(encoded[i].prompt, encoded[i].chosen) for i in index]
    rows += [(encoded[i].prompt, encoded[i].rejected) for i in index]
    width = max(len(prompt) + len(response) for prompt, response in rows)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    response_mask = torch.zeros((len(rows), width), dtype=torch.bool)
    for row, (prompt, response) in enumerate(rows):
        length = len(prompt) + len(response)
        ids[row, :length] = torch.tensor(prompt + response, dtype=torch.long)
        mask[row, :length] = 1
        response_mask[row, len(prompt) : length] = True
    return Batch(ids, mask, response_mask, list(index))
