"""How pairs lie in a row: a shared prompt once, then both responses; or plainly, two rows a pair.

In: encoded pairs. Out: tensors for one forward pass, and which hidden state predicts which response
token. Invariant: both layouts give the same log-probabilities; the shared one computes every prompt
once and no padding at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sp2dpo_ray.modeling.encode import EncodedPair

SHARED, PLAIN = "shared", "plain"
Places = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Segment:
    """Where a pair lies in a row: its start, and the lengths of prompt, chosen and rejected."""

    start: int
    prompt: int
    chosen: int
    rejected: int


@dataclass(frozen=True, slots=True)
class Batch:
    """One forward pass over P pairs; rows 0..P-1 of the result are chosen, P..2P-1 rejected.

    ids_RT, position_RT: token ids and their positions. mask_RT: attention mask of the plain layout,
    None in the shared one, which has `segments` instead. source_M: the place, in the flattened
    rows, of the hidden state that predicts response token m; target_M: that token; row_M: whose
    sum it belongs to. index: the pairs' places in the list that the batch was made of.
    """

    ids_RT: Tensor
    position_RT: Tensor
    mask_RT: Tensor | None
    segments: tuple[Segment, ...]
    source_M: Tensor
    target_M: Tensor
    row_M: Tensor
    index: list[int]

    @property
    def num_rows(self) -> int:
        return 2 * len(self.index)

    def to(self, device: torch.device) -> Batch:
        moved = {
            name: getattr(self, name).to(device, non_blocking=True)
            for name in ("ids_RT", "position_RT", "source_M", "target_M", "row_M")
        }
        mask = None if self.mask_RT is None else self.mask_RT.to(device)
        return replace(self, **moved, mask_RT=mask)


def collate(
    encoded: Sequence[EncodedPair], index: list[int], pad_id: int, layout: str = PLAIN
) -> Batch:
    """The pairs at `index` as one batch in that layout."""
    pairs = [encoded[i] for i in index]
    return _shared(pairs, index) if layout == SHARED else _plain(pairs, index, pad_id)


def row_tokens(pair: EncodedPair, layout: str) -> int:
    """Tokens that a pair adds to a batch of that layout, its own padding not counted."""
    if layout == SHARED:
        return len(pair.prompt) + len(pair.chosen) + len(pair.rejected)
    return 2 * pair.longest_row


def two_row_tokens(pair: EncodedPair) -> int:
    """Tokens of a pair in two rows without padding: what other trainers count."""
    return 2 * len(pair.prompt) + len(pair.chosen) + len(pair.rejected)


def plan_batches(
    encoded: Sequence[EncodedPair],
    order: Sequence[int],
    tokens_per_batch: int,
    layout: str = PLAIN,
) -> list[list[int]]:
    """Group the pairs named in `order` so that no batch exceeds the token budget.

    Pairs of like length go together, the longest first: without padding to save, the most memory
    is then asked for at once and not in the middle of a run. A pair over the budget by itself gets
    a batch of its own.
    """
    ranked = sorted(order, key=lambda i: (row_tokens(encoded[i], layout), i), reverse=True)
    batches: list[list[int]] = []
    used = 0
    for i in ranked:
        size = row_tokens(encoded[i], layout)
        # in the plain layout every row is as wide as the batch's first, its longest
        size = size if layout == SHARED or not batches else max(
            size, row_tokens(encoded[batches[-1][0]], layout)
        )  # fmt: skip
        if batches and used + size <= tokens_per_batch:
            batches[-1].append(i)
            used += size
        else:
            batches.append([i])
            used = row_tokens(encoded[i], layout)
    return batches


def _shared(pairs: list[EncodedPair], index: list[int]) -> Batch:
    """[prompt | chosen | rejected] of each pair behind the other; positions restart."""
    ids, positions, segments = [], [], []
    sources: tuple[list[Places], list[Places]] = ([], [])
    start = 0
    for pair in pairs:
        prompt, chosen, rejected = len(pair.prompt), len(pair.chosen), len(pair.rejected)
        ids += [pair.prompt, pair.chosen, pair.rejected]
        positions += [np.arange(prompt + chosen), np.arange(prompt, prompt + rejected)]
        segments.append(Segment(start, prompt, chosen, rejected))
        last = start + prompt - 1  # it predicts the first token of both responses
        sources[0].append(np.arange(last, last + chosen))
        after = np.arange(last + chosen, last + chosen + rejected)
        after[:1] = last
        sources[1].append(after)
        start += prompt + chosen + rejected
    responses = [*(pair.chosen for pair in pairs), *(pair.rejected for pair in pairs)]
    return Batch(
        _long(ids)[None],
        _long(positions)[None],
        None,
        tuple(segments),
        _long([*sources[0], *sources[1]]),
        _long(responses),
        _rows(responses),
        list(index),
    )


def _plain(pairs: list[EncodedPair], index: list[int], pad_id: int) -> Batch:
    """Two rows a pair, padded on the right."""
    responses = [*(pair.chosen for pair in pairs), *(pair.rejected for pair in pairs)]
    prompts = [pair.prompt for pair in pairs] * 2
    width = max(len(p) + len(r) for p, r in zip(prompts, responses, strict=True))
    ids = np.full((len(responses), width), pad_id, dtype=np.int64)
    mask = np.zeros((len(responses), width), dtype=np.int64)
    sources = []
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        length = len(prompt) + len(response)
        ids[row, :length] = np.concatenate([prompt, response])
        mask[row, :length] = 1
        first = row * width + len(prompt) - 1
        sources.append(np.arange(first, first + len(response)))
    return Batch(
        torch.from_numpy(ids),
        torch.arange(width).expand(len(responses), width),
        torch.from_numpy(mask),
        (),
        _long(sources),
        _long(responses),
        _rows(responses),
        list(index),
    )


def _long(parts: Sequence[Any]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))


def _rows(responses: Sequence[Any]) -> Tensor:
    """For each response token the row of its response."""
    return torch.repeat_interleave(torch.tensor([len(response) for response in responses]))
