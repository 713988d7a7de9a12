"""The vocabulary head on response tokens, a piece at a time.

In: hidden states that predict response tokens. Out: the log-probability of each token. Invariant:
a piece has no more logits than the byte budget holds in float32 (with the head's own output and the
gradient beside them, up to three times that is in use); a frozen head costs no more arithmetic for
that, since its gradient is linear in the loss and is formed while the logits are there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sp2dpo_ray.objectives.logps import token_logps

Head = Callable[[Tensor], Tensor]


def head_logps(
    head: Head, hidden_MH: Tensor, target_M: Tensor, *, vocabulary: int, frozen: bool, budget: int
) -> Tensor:
    """log p(target) of each position; (M,), float32 (float64 where the model is).

    head: hidden states to logits. frozen: whether none of its weights are trained. budget: bytes
    that the logits of one piece may take.
    """
    rows = max(1, budget // (vocabulary * 4))
    if len(hidden_MH) <= rows:
        return token_logps(head(hidden_MH), target_M)
    if not torch.is_grad_enabled() or (frozen and not hidden_MH.requires_grad):
        return _in_pieces(head, hidden_MH, target_M, rows)
    if frozen:
        return _FrozenHead.apply(hidden_MH, target_M, head, rows)
    # a head that learns is computed again on the way back
    pieces = [
        checkpoint(lambda h, t: token_logps(head(h), t), h, t, use_reentrant=False)
        for h, t in zip(hidden_MH.split(rows), target_M.split(rows), strict=True)
    ]
    return torch.cat(pieces)


def _in_pieces(head: Head, hidden_MH: Tensor, target_M: Tensor, rows: int) -> Tensor:
    return torch.cat(
        [
            token_logps(head(h), t)
            for h, t in zip(hidden_MH.split(rows), target_M.split(rows), strict=True)
        ]
    )


class _FrozenHead(torch.autograd.Function):
    """Log-probabilities with d logp_m / d hidden_m kept instead of the logits; (M, H)."""

    @staticmethod
    def forward(ctx: Any, hidden_MH: Tensor, target_M: Tensor, head: Head, rows: int) -> Tensor:
        logps, gradients = [], []
        for hidden, target in zip(hidden_MH.split(rows), target_M.split(rows), strict=True):
            with torch.enable_grad():
                piece = hidden.detach().requires_grad_()
                logp = token_logps(head(piece), target)
                (gradient,) = torch.autograd.grad(logp.sum(), piece)
            logps.append(logp.detach())
            gradients.append(gradient)
        ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(logps)

    @staticmethod
    def backward(ctx: Any, grad_M: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        (gradient_MH,) = ctx.saved_tensors
        return gradient_MH * grad_M[:, None].to(gradient_MH.dtype), None, None, None
