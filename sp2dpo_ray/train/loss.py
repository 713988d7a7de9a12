"""The loss of an arm: a form of the catalogue with its options, and what it remembers.

In: the configuration's method. Out: losses of pairs, and where the method asks for it terms of a
whole step, measured beforehand. Invariant: what is remembered lies in the checkpoint, and random
draws come from (seed, step), so a resumed run computes the same terms, on every worker alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from sp2dpo_ray.core.methods import METHODS, options_of
from sp2dpo_ray.objectives.pair_loss import LOSSES, PairLogps, adapted_betas
from sp2dpo_ray.objectives.step_methods import STEP_METHODS, Memory, Terms, recall, step_loss


class Loss:
    """`name` of the catalogue; options that are not given have their defaults.

    envelope: bounds of the betas, where the method moves them.
    """

    def __init__(
        self,
        name: str,
        options: Mapping[str, float] | None = None,
        seed: int = 0,
        envelope: tuple[float, float] = (0.0, float("inf")),
    ) -> None:
        self.moves_betas = METHODS[name].prior
        self._envelope = envelope
        self._options = options_of(name, options or {})
        self._pair = LOSSES.get(name)
        self._seed = seed
        self._memory: Memory | None = None
        self.step_method = STEP_METHODS.get(name)

    def __call__(self, logps: PairLogps, beta_B: Tensor, terms: Terms | None = None) -> Tensor:
        """The loss of each pair; (B,). terms: of these pairs, where the method has them."""
        if self._pair is not None:
            return self._pair(logps, beta_B, self._options)
        assert self.step_method is not None
        if terms is None:  # only asked for its memory: any terms have the same graph
            zero = torch.zeros_like(beta_B)
            terms = Terms(beta_B, zero, zero + 1)
        return step_loss(self.step_method, logps, terms)

    def betas(self, logps: PairLogps, prior_B: Tensor) -> Tensor:
        """The betas that these pairs are trained with now; (B,)."""
        if not self.moves_betas:
            return prior_B
        return adapted_betas(logps.margin, prior_B, self._options["a"], self._envelope)

    def terms(self, measured_N: Tensor, beta_N: Tensor, step: int) -> Terms:
        """The terms of a step from its pairs' numbers and betas, (N,) each; remembers them."""
        assert self.step_method is not None
        measured_N, beta_N = measured_N.double().cpu(), beta_N.double().cpu()
        self._memory = recall(self.step_method, self._memory, measured_N)
        draw = torch.Generator().manual_seed(self._seed * 1_000_003 + step)
        return self.step_method.make(measured_N, beta_N, self._options, self._memory, draw)

    def state(self) -> dict[str, Any]:
        return {"memory": asdict(self._memory) if self._memory else None}

    def restore(self, state: dict[str, Any]) -> None:
        self._memory = Memory(**state["memory"]) if state["memory"] else None
