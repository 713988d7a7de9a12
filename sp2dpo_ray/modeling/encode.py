"""From pairs to tokens.

In: pairs and a tokenizer with a chat template. Out: `EncodedPair`s. Invariant: prompt and response
are encoded jointly, so token boundaries are those that the model sees, both responses follow the
same prompt tokens, and whatever was cut or shifted is noted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sp2dpo_ray.core.pairs import Pair
from sp2dpo_ray.errors import ConfigError, DataError

Tokens = NDArray[np.int32]

# what may have happened to a pair on its way to tokens
PROMPT_CUT, CHOSEN_CUT, REJECTED_CUT = "prompt_cut", "chosen_cut", "rejected_cut"
CUTS = frozenset({PROMPT_CUT, CHOSEN_CUT, REJECTED_CUT})
END_LOST = "end_lost"  # a cut took the token that closes the turn
BOUNDARY_SHIFTED = "boundary_shifted"  # prompt and response merge into other tokens than apart
TAIL = 3  # tokens at a turn's end that its closing one is looked for in
ALIKE = "alike"  # both responses are the same tokens: nothing to learn


@dataclass(frozen=True, slots=True)
class Encoding:
    """How pairs become tokens.

    max_length: of prompt and response together; a response over the rest loses its end.
    max_prompt_length: a longer prompt keeps its end, or its start. keep_end_token: a response that
    is cut still ends with the token that closes a turn, in place of its last.
    """

    max_length: int
    max_prompt_length: int
    keep_prompt: str = "end"
    keep_end_token: bool = False


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """Token ids of a pair, and the notes on what was cut or shifted."""

    prompt_id: str
    prompt: Tokens
    chosen: Tokens
    rejected: Tokens
    notes: tuple[str, ...] = ()

    @property
    def truncated(self) -> bool:
        return not CUTS.isdisjoint(self.notes)

    @property
    def shorter_response(self) -> int:
        return min(len(self.chosen), len(self.rejected))

    @property
    def longest_row(self) -> int:
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))


def encode_pairs(pairs: Sequence[Pair], tokenizer: Any, how: Encoding) -> list[EncodedPair]:
    """Encode pairs with the tokenizer's chat template.

    The prompt ends where its tokens and those of prompt + response part, as in TRL.
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
    rows = [np.array(row, np.int32) for row in ids]
    special = [number for number, token in tokenizer.added_tokens_decoder.items() if token.special]
    ends = [
        _end_of_turn(rows[3 * i + 1], special, tokenizer.eos_token_id) for i in range(len(pairs))
    ]
    return [
        _cut(pair.prompt_id, *rows[3 * i : 3 * i + 3], how, end)
        for i, (pair, end) in enumerate(zip(pairs, ends, strict=True))
    ]


def _end_of_turn(row: Tokens, special: list[int], otherwise: int) -> int:
    """The token that closes a turn: what the template writes last, but for text such as a line
    break. Not always the one that ends a text: Gemma has another."""
    tail = row[-TAIL:][np.isin(row[-TAIL:], special)]
    return int(tail[-1]) if len(tail) else otherwise


def _render(tokenizer: Any, turns: list[dict[str, str]], **options: Any) -> str:
    return str(tokenizer.apply_chat_template(turns, tokenize=False, **options))


def _cut(
    prompt_id: str, prompt: Tokens, with_chosen: Tokens, with_rejected: Tokens, how: Encoding,
    end: int,
) -> EncodedPair:  # fmt: skip
    shared = min(_common(prompt, with_chosen), _common(prompt, with_rejected))
    if not shared:
        raise DataError(
            f"pair {prompt_id}: its prompt and its responses have no common beginning once encoded"
        )
    notes = [BOUNDARY_SHIFTED] if shared < len(prompt) else []
    kept = prompt[:shared]
    if shared > how.max_prompt_length:
        notes.append(PROMPT_CUT)
        start = shared - how.max_prompt_length if how.keep_prompt == "end" else 0
        kept = kept[start : start + how.max_prompt_length]
    responses = []
    for name, row in ((CHOSEN_CUT, with_chosen[shared:]), (REJECTED_CUT, with_rejected[shared:])):
        room = how.max_length - len(kept)
        if len(row) <= room:
            responses.append(row)
            continue
        notes.append(name)
        short = row[:room].copy()
        if how.keep_end_token:
            short[-1] = end
        elif end not in short:
            notes.append(END_LOST)
        responses.append(short)
    if np.array_equal(*responses):
        notes.append(ALIKE)
    return EncodedPair(prompt_id, kept, *responses, tuple(dict.fromkeys(notes)))


def _common(one: Tokens, other: Tokens) -> int:
    """How many first tokens are the same."""
    length = min(len(one), len(other))
    differ = np.flatnonzero(one[:length] != other[:length])
    return int(differ[0]) if len(differ) else length
