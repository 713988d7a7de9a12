"""Losses whose terms depend on all pairs of a step: a beta, a margin or a weight for each of them.

In: one number a pair, measured without a gradient over the whole optimiser step. Out: `Terms`, and
what is remembered for the next step. Invariant: terms are constants to the gradient; they know the
step's pairs and not how these were spread over workers or cut into batches.

The loss of a pair is w_i * -log s(b_i * H_i - m_i).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sp2dpo_ray.objectives.pair_loss import PairLogps

Options = Mapping[str, float]
KEEP = 0.9  # of the running mean and deviation, in beta-DPO and alpha-DPO
LEAST_BETA = 1e-3
GAMMA_STEPS = 20
TINY = 1e-12


@dataclass(frozen=True, slots=True)
class Terms:
    """beta, shift (m) and weight of each pair of a step; (N,) float64."""

    beta: Tensor
    shift: Tensor
    weight: Tensor

    def at(self, places: list[int]) -> Terms:
        """Those of some of the pairs."""
        return Terms(self.beta[places], self.shift[places], self.weight[places])


@dataclass(frozen=True, slots=True)
class Memory:
    """Running mean and standard deviation of the measured numbers."""

    mean: float
    deviation: float


Make = Callable[[Tensor, Tensor, Options, Memory, torch.Generator], Terms]


@dataclass(frozen=True, slots=True)
class StepMethod:
    """measure: the number a pair; (B,). gap: H of the loss; (B,). make: the terms of a step from
    its numbers and betas, each (N,). remembers: whether mean and deviation run on from step to
    step; else they are the step's own."""

    measure: Callable[[PairLogps], Tensor]
    gap: Callable[[PairLogps], Tensor]
    make: Make
    remembers: bool = False


def step_loss(method: StepMethod, logps: PairLogps, terms: Terms) -> Tensor:
    """The loss of each pair under its terms; (B,)."""
    gap = method.gap(logps)
    beta, shift, weight = (
        term.to(gap.device, gap.dtype) for term in (terms.beta, terms.shift, terms.weight)
    )
    return weight * -F.logsigmoid(beta * gap - shift)


def recall(method: StepMethod, memory: Memory | None, measured_N: Tensor) -> Memory:
    """Mean and deviation that the terms of this step use: updated before use, as in the authors'
    code, but begun with the first step's own instead of zeros."""
    mean = float(measured_N.mean())
    deviation = float(measured_N.std()) if len(measured_N) > 1 else 1.0
    if memory is None or not method.remembers:
        return Memory(mean, max(deviation, TINY))
    return Memory(
        KEEP * memory.mean + (1 - KEEP) * mean,
        max(KEEP * memory.deviation + (1 - KEEP) * deviation, TINY),
    )


def _beta_dpo(
    measured_N: Tensor, beta_N: Tensor, options: Options, memory: Memory, draw: torch.Generator
) -> Terms:
    """beta-DPO (arXiv:2407.08639): b (1 + a (mean h - mu)) for all pairs that are kept, at least
    `LEAST_BETA`; a pair is kept with the Gaussian density of its margin about the running mean.

    measured_N: margins h, nats. options: rho, the share left out; a.
    """
    count = len(measured_N)
    kept = max(1, int((1 - options["rho"]) * count))
    log_share = -0.5 * ((measured_N - memory.mean) / memory.deviation) ** 2
    # the largest of log-probability + Gumbel noise are a draw without replacement, and never run
    # out of mass
    noise = -torch.log(-torch.log(torch.rand(count, generator=draw, dtype=torch.float64) + TINY))
    chosen = torch.topk(log_share + noise, kept).indices
    weight = torch.zeros(count, dtype=torch.float64)
    weight[chosen] = count / kept  # the mean over the kept pairs
    scale = 1 + options["a"] * (measured_N[chosen].mean() - memory.mean)
    beta = (beta_N * scale).clamp(min=LEAST_BETA)
    return Terms(beta, torch.zeros_like(weight), weight)


def _alpha_dpo(
    measured_N: Tensor, beta_N: Tensor, options: Options, memory: Memory, _: torch.Generator
) -> Terms:
    """AlphaDPO (arXiv:2410.10148): a margin b (g + alpha z) with z the standardized mean margin.

    measured_N: log-ratio margins per token, nats. options: gamma, alpha.
    """
    z = (measured_N - memory.mean) / memory.deviation
    shift = beta_N * (options["alpha"] * z + options["gamma"])
    return Terms(beta_N, shift, torch.ones_like(shift))


def _gamma_po(
    measured_N: Tensor, beta_N: Tensor, options: Options, _: Memory, __: torch.Generator
) -> Terms:
    """gamma-PO, after its authors' code: margins that add up to N b g, larger for larger gaps, by
    `GAMMA_STEPS` of exponentiated gradient on the simplex with an entropy of weight tau.

    measured_N: policy gaps per token, nats. options: gamma, tau.
    """
    count, tau = len(measured_N), options["tau"]
    reward, base = beta_N * measured_N, options["gamma"] * beta_N
    share = torch.full((count,), 1 / count, dtype=torch.float64)
    rate = min(0.5 / tau, 1.0)
    for _step in range(GAMMA_STEPS):
        slope = tau * (1 + torch.log(count * share)) + base * torch.sigmoid(
            base * count * share - reward
        )
        share = share * torch.exp(-rate * slope)
        share = share / share.sum()
    return Terms(beta_N, base * count * share, torch.ones_like(share))


def _amapo(
    measured_N: Tensor, beta_N: Tensor, _: Options, memory: Memory, __: torch.Generator
) -> Terms:
    """AMaPO (arXiv:2511.09385): m = b [d < mu] exp(mu (mu - d) / sd), mu and sd the step's own.

    measured_N: policy gaps d per token, nats.
    """
    behind = (memory.mean - measured_N) / memory.deviation
    shift = beta_N * (measured_N < memory.mean) * torch.exp(behind * memory.mean)
    return Terms(beta_N, shift, torch.ones_like(shift))


# under the names of `core/methods.py`, where each is described
STEP_METHODS: dict[str, StepMethod] = {
    "beta_dpo": StepMethod(
        lambda logps: logps.margin, lambda logps: logps.margin, _beta_dpo, remembers=True
    ),
    "alpha_dpo": StepMethod(
        lambda logps: logps.mean_margin, lambda logps: logps.policy_gap, _alpha_dpo, remembers=True
    ),
    "gamma_po": StepMethod(
        lambda logps: logps.policy_gap, lambda logps: logps.policy_gap, _gamma_po
    ),
    "amapo": StepMethod(lambda logps: logps.policy_gap, lambda logps: logps.policy_gap, _amapo),
}
