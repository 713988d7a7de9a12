"""A faster way through PEFT's LoRA layers: the same weights, the same function, fewer passes.

In: a model with adapters of PEFT. Out: the same model, whose plain LoRA layers compute base and
adapter in one autograd node. Invariant: without dropout, output and gradients are those of PEFT;
with it, each element is dropped independently with the same probability, drawn from torch's seed.
PEFT keeps the weights, so saving, merging and switching off are untouched.

What it saves: no mask of the input's size is drawn (on a CPU, drawing one costs more than the layer
itself; the dropped places are drawn instead, by their gaps), none is kept for the way back, and
base and adapter are added where the product is formed.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from peft.tuners.lora.layer import Linear as LoraLayer
from torch import Tensor, nn


def speed_up(model: Any) -> int:
    """Put the faster forward into every LoRA layer that it can serve; returns how many."""
    count = 0
    for module in model.modules():
        if type(module) is LoraLayer and _plain(module):
            module.forward = partial(_forward, module, module.forward)
            count += 1
    return count


def _plain(layer: Any) -> bool:
    """One ordinary adapter on an ordinary linear layer, no variant such as DoRA."""
    return (
        type(layer.base_layer) is nn.Linear
        and len(layer.active_adapters) == 1
        and not layer.lora_variant
        and not any(layer.lora_bias.values())
    )


def _forward(layer: Any, plain: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    (name,) = layer.active_adapters
    base, a = layer.base_layer, layer.lora_A[name].weight
    # whoever asks for anything else gets PEFT's own way; a measurement without gradients during
    # training is served here, since it must drop what the training pass drops
    if (
        args or kwargs or layer.disable_adapters or layer.merged
        or base.weight.requires_grad or not (torch.is_grad_enabled() or layer.training)
        or not x.dtype == base.weight.dtype == a.dtype or torch.is_autocast_enabled(x.device.type)
    ):  # fmt: skip
        result: Tensor = plain(x, *args, **kwargs)
        return result
    share = getattr(layer.lora_dropout[name], "p", 0.0) if layer.training else 0.0
    dropped = _draw(x, share) if share else None
    flat = x.reshape(-1, x.shape[-1])
    made: Tensor = _Lora.apply(
        flat, base.weight, base.bias, a, layer.lora_B[name].weight,
        layer.scaling[name], 1.0 / (1.0 - share), dropped,
    )  # fmt: skip
    return made.view(*x.shape[:-1], -1)


class _Lora(torch.autograd.Function):
    """y = x W^T + bias + scaling * keep * drop(x) A^T B^T, W and bias frozen."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor,
        scaling: float, keep: float, dropped: Tensor | None,
    ) -> Tensor:  # fmt: skip
        inner = _without(x, dropped) @ a.t()
        y = F.linear(x, weight, bias).addmm_(inner, b.t(), alpha=scaling * keep)
        ctx.save_for_backward(x, weight, a, b, inner, dropped)
        ctx.factor = scaling * keep
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        x, weight, a, b, inner, dropped = ctx.saved_tensors
        grad_inner = (grad @ b).mul_(ctx.factor)
        grad_b = (grad.t() @ inner).mul_(ctx.factor)
        grad_a = grad_inner.t() @ _without(x, dropped)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ weight
            if dropped is None:
                grad_x.addmm_(grad_inner, a)
            else:
                grad_x += _zeroed(grad_inner @ a, dropped)
        return grad_x, None, None, grad_a, grad_b, None, None, None


def _draw(x: Tensor, share: float) -> Tensor:
    """The places to drop: indices into the flat tensor on a CPU, a mask elsewhere.

    The gap between two dropped places of independent draws is geometric: floor(E / -log(1 - p)) of
    an exponential E.
    """
    if x.device.type != "cpu":
        return torch.rand(x.shape, device=x.device).view(-1, x.shape[-1]) < share
    seed = int(torch.randint(2**62, ()))
    draw = np.random.Generator(np.random.SFC64(seed))
    count, parts, last = x.numel(), [], -1
    while last < count:
        expected = (count - last) * share
        size = int(expected + 6 * math.sqrt(expected)) + 8
        gaps = (draw.standard_exponential(size) / -math.log1p(-share)).astype(np.int64)
        places = last + np.cumsum(gaps + 1)
        parts.append(places)
        last = int(places[-1])
    places = np.concatenate(parts)
    return torch.from_numpy(places[: np.searchsorted(places, count)])


def _without(x: Tensor, dropped: Tensor | None) -> Tensor:
    return x if dropped is None else _zeroed(x.clone(), dropped)


def _zeroed(x: Tensor, dropped: Tensor) -> Tensor:
    """x with its dropped places set to 0, in place."""
    if dropped.dtype == torch.bool:
        return x.masked_fill_(dropped, 0.0)
    x.view(-1).index_fill_(0, dropped, 0.0)
    return x
