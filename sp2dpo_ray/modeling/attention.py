"""Attention over rows in which two responses share one prompt.

In: queries, keys and values of a packed row, and its segments. Out: what two separate rows a pair
would have given. Invariant: no token sees another pair, neither response sees the other, and
nothing is computed for a token that may not be seen, so there is no quadratic price for packing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from sp2dpo_ray.errors import TrainingError
from sp2dpo_ray.modeling.layout import PLAIN, SHARED, Segment

PAIRS = "sp2dpo_pairs"  # its name among the implementations that transformers knows


def pair_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    segments: tuple[Segment, ...] | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **other: Any,
) -> tuple[Tensor, None]:
    """Attention within each pair; shapes (1, heads, T, width) to (1, T, heads, width).

    The chosen branch is plain causal attention over [prompt | chosen]; the rejected response asks
    [prompt | rejected]. sliding_window: how many tokens back a layer may look, itself included.
    """
    if segments is None:
        raise TrainingError(
            f"student.model: {type(module).__name__} is not told where the pairs of a row lie; "
            "set train.layout: plain for this architecture"
        )
    if other.get("softcap") is not None or other.get("s_aux") is not None:
        raise TrainingError(
            f"student.model: {type(module).__name__} has a softcap or sinks in its attention; "
            "set train.layout: plain for this architecture"
        )
    grouped = query.shape[1] != key.shape[1]

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        few, many = q.shape[2], k.shape[2]
        window = sliding_window if sliding_window and sliding_window < many else None
        whole = few == many and window is None
        mask = None if whole else _mask(few, many, window, q.dtype, q.device)
        return F.scaled_dot_product_attention(
            q, k, v, mask, dropout, is_causal=whole, scale=scaling, enable_gqa=grouped
        )

    parts = []
    for segment in segments:
        shared = slice(segment.start, segment.start + segment.prompt)
        chosen = slice(segment.start, shared.stop + segment.chosen)
        rejected = slice(chosen.stop, chosen.stop + segment.rejected)
        parts.append(attend(query[:, :, chosen], key[:, :, chosen], value[:, :, chosen]))
        if segment.rejected:
            k, v = (torch.cat([x[:, :, shared], x[:, :, rejected]], dim=2) for x in (key, value))
            parts.append(attend(query[:, :, rejected], k, v))
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


@lru_cache(maxsize=16)
def _mask(
    few: int, many: int, window: int | None, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """0 where the last `few` of `many` tokens may look, back and no further than the window, and
    -inf elsewhere: what attention would make of a mask of truths in every layer again."""
    with torch.inference_mode(False):  # it is kept, and may serve a training step later
        row = torch.arange(many - few, many, device=device)[:, None]
        column = torch.arange(many, device=device)
        seen = column <= row
        if window is not None:
            seen &= column > row - window
        return torch.zeros(few, many, dtype=dtype, device=device).masked_fill_(~seen, -torch.inf)


# a name of its own, and no mask function under it: transformers then builds no T x T mask
AttentionInterface.register(PAIRS, pair_attention)


IMPLEMENTATION = {SHARED: PAIRS, PLAIN: "sdpa"}


@contextmanager
def attention(model: Any, layout: str) -> Iterator[None]:
    """The model attending for that layout while the block lasts.

    Not for training: checkpointed layers are computed again after the forward pass, and must then
    find the same attention. `load_model` sets it for good.
    """
    before = model.config._attn_implementation
    model.set_attn_implementation(IMPLEMENTATION[layout])
    try:
        yield
    finally:
        model.set_attn_implementation(before)
