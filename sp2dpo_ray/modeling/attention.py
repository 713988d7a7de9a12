"""Attention over rows in which two responses share one prompt.

In: queries, keys and values of a packed row, and its segments. Out: what two separate rows a pair
would have given. Invariant: no token sees another pair, neither response sees the other, and
nothing is computed for a token that may not be seen, so there is no quadratic price for packing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from sp2dpo_ray.errors import TrainingError
from sp2dpo_ray.modeling.layout import PLAIN, SHARED, Segment

# their names among the implementations that transformers knows
PAIRS = "sp2dpo_pairs"
VARLEN = "sp2dpo_varlen"  # the same by one kernel a layer, on a CUDA GPU in 16 bits
HALVES = (torch.bfloat16, torch.float16)

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # an older torch: every pair by itself
    varlen_attn = None


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
    segments = _told(module, segments, other)
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


def _told(
    module: Any, segments: tuple[Segment, ...] | None, other: dict[str, Any]
) -> tuple[Segment, ...]:
    """The segments of a row; TrainingError for an architecture that needs more than those."""
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
    return segments


def varlen_attention(
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
    """What `pair_attention` computes, by one kernel for all pairs where there is such a one.

    A row [prompt | chosen | rejected] is two sequences of queries, prompt + chosen and rejected;
    the keys of the second are those of prompt + rejected, gathered. The kernel's causal mask ends
    at the last query and key of a sequence, so a rejected token sees the whole prompt.
    """
    if torch.is_autocast_enabled(query.device.type):  # what attention does there by itself
        half = torch.get_autocast_dtype(query.device.type)
        query, key, value = (x.to(half) for x in (query, key, value))
    if dropout or not kernel_serves(query):
        return pair_attention(
            module, query, key, value, attention_mask, segments=segments, dropout=dropout,
            scaling=scaling, sliding_window=sliding_window, **other,
        )  # fmt: skip
    ragged = ragged_of(_told(module, segments, other), query.device)
    keys, values = (x[0].transpose(0, 1)[ragged.keys_K] for x in (key, value))
    found = varlen_attn(
        query[0].transpose(0, 1).contiguous(), keys, values, ragged.starts_q, ragged.starts_k,
        ragged.longest_q, ragged.longest_k, scale=scaling, enable_gqa=True,
        window_size=(sliding_window - 1 if sliding_window else -1, 0),
    )  # fmt: skip
    return found[None], None


def kernel_serves(query: Tensor) -> bool:
    """Whether PyTorch's variable-length kernel takes these queries, (1, heads, T, width): it is
    there, they are on a GPU and in half precision."""
    return varlen_attn is not None and query.is_cuda and query.dtype in HALVES


@dataclass(frozen=True, slots=True)
class Ragged:
    """A row as sequences of queries and of keys: where each starts, the longest of them, and the
    row's token behind each of the K keys."""

    starts_q: Tensor
    starts_k: Tensor
    longest_q: int
    longest_k: int
    keys_K: Tensor


@lru_cache(maxsize=4)  # every layer of a batch asks for the same
def ragged_of(segments: tuple[Segment, ...], device: torch.device) -> Ragged:
    """The sequences of a row of pairs: prompt with chosen, and rejected over the same prompt."""
    queries, keys, places = [], [], []
    for each in segments:
        first, second = each.prompt + each.chosen, each.prompt + each.rejected
        queries += [first, each.rejected] if each.rejected else [first]
        keys += [first, second] if each.rejected else [first]
        places.append(torch.arange(each.start, each.start + first))
        if each.rejected:
            behind = each.start + first
            places.append(torch.arange(each.start, each.start + each.prompt))
            places.append(torch.arange(behind, behind + each.rejected))
    with torch.inference_mode(False):  # kept, as the masks are
        starts = [
            torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
            for lengths in (queries, keys)
        ]
        return Ragged(*starts, max(queries), max(keys), torch.cat(places).to(device))


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
AttentionInterface.register(VARLEN, varlen_attention)

SHARING = frozenset({PAIRS, VARLEN})


def implementation(layout: str, varlen: bool = True) -> str:
    """The attention that a layout needs. varlen: whether one kernel may serve all pairs of a row,
    where there is one."""
    return {SHARED: VARLEN if varlen else PAIRS, PLAIN: "sdpa"}[layout]


@contextmanager
def attention(model: Any, layout: str) -> Iterator[None]:
    """The model attending for that layout while the block lasts.

    Not for training: checkpointed layers are computed again after the forward pass, and must then
    find the same attention. `load_model` sets it for good.
    """
    before = model.config._attn_implementation
    model.set_attn_implementation(implementation(layout))
    try:
        yield
    finally:
        model.set_attn_implementation(before)
