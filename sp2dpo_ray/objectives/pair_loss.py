"""The pair loss: one temperature for each pair, in the form that the configuration names.

Shapes: B pairs. Margin: the policy's log-ratio of chosen minus rejected, less the reference's
(Eq. 7). Invariant: elementwise; how pairs are averaged is the training step's business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Options = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class PairLogps:
    """Summed log-probabilities of the two responses under policy and reference, and how many tokens
    each sum has; each (B,)."""

    chosen: Tensor
    rejected: Tensor
    ref_chosen: Tensor
    ref_rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor
    counted: PairLogps | None = None
    """The same of the tokens that a method of tokens counts; no reference in it."""

    @property
    def chosen_ratio(self) -> Tensor:
        """r(x, y_w) of Eq. 3, in nats."""
        return self.chosen - self.ref_chosen

    @property
    def rejected_ratio(self) -> Tensor:
        """r(x, y_l) of Eq. 3, in nats."""
        return self.rejected - self.ref_rejected

    @property
    def margin(self) -> Tensor:
        """r(x, y_w) - r(x, y_l), in nats (Eqs. 3 and 7)."""
        return (self.chosen - self.rejected) - (self.ref_chosen - self.ref_rejected)

    @property
    def mean_margin(self) -> Tensor:
        """The same with each ratio divided by the number of its tokens."""
        return self.chosen_ratio / self.chosen_tokens.clamp(min=1) - (
            self.rejected_ratio / self.rejected_tokens.clamp(min=1)
        )

    @property
    def policy_gap(self) -> Tensor:
        """The policy's log-probability per token of chosen less rejected; no reference."""
        return self.chosen / self.chosen_tokens.clamp(min=1) - (
            self.rejected / self.rejected_tokens.clamp(min=1)
        )


def logistic(margin_B: Tensor, beta_B: Tensor) -> Tensor:
    """-log sigmoid(beta_i * margin_i) of each pair (Eqs. 5 and 6); (B,).

    Its gradient in the margin is -beta_i * sigmoid(-beta_i * margin_i) (Eq. 8). With a constant
    beta this is the loss of Rafailov et al. (2023).
    """
    return -F.logsigmoid(beta_B * margin_B)


def adapted_betas(
    margin_B: Tensor, prior_B: Tensor, strength: float, envelope: tuple[float, float]
) -> Tensor:
    """The prior beta of each pair scaled by what the student makes of the pair now; (B,).

    beta * (1 + strength * (2 sigmoid(beta * margin) - 1)), within the envelope and not
    differentiated: a pair that the student has not moved on keeps its prior; with a positive
    strength the beta rises where the student agrees with the label, and falls where it does not.
    """
    agrees = torch.tanh(prior_B * margin_B.detach() / 2)  # 2 sigmoid(x) - 1
    return (prior_B * (1 + strength * agrees)).clamp(*envelope)


def _smoothed(logps: PairLogps, beta_B: Tensor, options: Options) -> Tensor:
    z, epsilon = beta_B * logps.margin, options["epsilon"]
    return -(1 - epsilon) * F.logsigmoid(z) - epsilon * F.logsigmoid(-z)


def _robust(logps: PairLogps, beta_B: Tensor, options: Options) -> Tensor:
    z, epsilon = beta_B * logps.margin, options["epsilon"]
    unbiased = -(1 - epsilon) * F.logsigmoid(z) + epsilon * F.logsigmoid(-z)
    return unbiased / (1 - 2 * epsilon)


def _apo_zero(logps: PairLogps, beta_B: Tensor, _: Options) -> Tensor:
    chosen, rejected = beta_B * logps.chosen_ratio, beta_B * logps.rejected_ratio
    return 1 - torch.sigmoid(chosen) + torch.sigmoid(rejected)


def _apo_down(logps: PairLogps, beta_B: Tensor, _: Options) -> Tensor:
    return torch.sigmoid(beta_B * logps.chosen_ratio) + 1 - torch.sigmoid(beta_B * logps.margin)


def _calibrated(logps: PairLogps, beta_B: Tensor, _: Options) -> Tensor:
    target = 1 / (2 * beta_B)
    pull = (logps.chosen_ratio - target) ** 2 + (logps.rejected_ratio + target) ** 2
    return -F.logsigmoid(logps.margin) + pull / 2


def _balanced(logps: PairLogps, beta_B: Tensor, options: Options) -> Tensor:
    down = -options["alpha"] * beta_B * logps.rejected_ratio
    return -F.logsigmoid(torch.minimum(beta_B * logps.chosen_ratio, down))


def _focal(logps: PairLogps, beta_B: Tensor, options: Options) -> Tensor:
    z = beta_B * logps.margin
    return -(torch.sigmoid(z).detach() ** options["gamma"]) * F.logsigmoid(z)


def _confident(logps: PairLogps, beta_B: Tensor, options: Options) -> Tensor:
    """SimPO over the tokens that count; a pair of which a response has none has no loss."""
    assert logps.counted is not None
    counts = (logps.counted.chosen_tokens > 0) & (logps.counted.rejected_tokens > 0)
    return counts * logistic(logps.counted.policy_gap - options["gamma"], beta_B)


# under the names of `core/methods.py`, where each is described
LOSSES: dict[str, Callable[[PairLogps, Tensor, Options], Tensor]] = {
    "logistic": lambda logps, beta, _: logistic(logps.margin, beta),
    # on betas that `adapted_betas` made
    "hybrid": lambda logps, beta, _: logistic(logps.margin, beta),
    "dpo_norm": lambda logps, beta, _: logistic(logps.mean_margin, beta),
    "hinge": lambda logps, beta, _: torch.relu(1 - beta * logps.margin),
    "ipo": lambda logps, beta, _: (logps.mean_margin - 1 / (2 * beta)) ** 2,
    "ipo_sum": lambda logps, beta, _: (logps.margin - 1 / (2 * beta)) ** 2,
    "cdpo": _smoothed,
    "robust": _robust,
    "apo_zero": _apo_zero,
    "apo_down": _apo_down,
    "simpo": lambda logps, beta, o: logistic(logps.policy_gap - o["gamma"], beta),
    # weights and chosen tokens come from outside of the loss
    "madpo": lambda logps, beta, _: logistic(logps.margin, beta),
    "confpo": _confident,
    "repo": lambda logps, _, o: torch.relu(o["gamma"] - logps.policy_gap),
    "cal_dpo": _calibrated,
    "bpo": _balanced,
    "focal": _focal,
}
