"""The pair loss: one temperature for each pair, in the form that the configuration names.

Shapes: B pairs. Margin: the policy's log-ratio of chosen minus rejected, less the reference's
(Eq. 7). Invariant: elementwise; how pairs are averaged is the training step's business.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


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


@dataclass(frozen=True, slots=True)
class LossForm:
    """A row of the table: loss(logps, beta_B, epsilon) of each pair; (B,).

    takes_epsilon: whether it models a share of flipped labels.
    """

    title: str
    loss: Callable[[PairLogps, Tensor, float], Tensor]
    takes_epsilon: bool = False


def logistic(margin_B: Tensor, beta_B: Tensor) -> Tensor:
    """-log sigmoid(beta_i * margin_i) of each pair (Eqs. 5 and 6); (B,).

    Its gradient in the margin is -beta_i * sigmoid(-beta_i * margin_i) (Eq. 8). With a constant
    beta this is the loss of Rafailov et al. (2023).
    """
    return -F.logsigmoid(beta_B * margin_B)


def _smoothed(logps: PairLogps, beta_B: Tensor, epsilon: float) -> Tensor:
    z = beta_B * logps.margin
    return -(1 - epsilon) * F.logsigmoid(z) - epsilon * F.logsigmoid(-z)


def _robust(logps: PairLogps, beta_B: Tensor, epsilon: float) -> Tensor:
    z = beta_B * logps.margin
    unbiased = -(1 - epsilon) * F.logsigmoid(z) + epsilon * F.logsigmoid(-z)
    return unbiased / (1 - 2 * epsilon)


def _apo_zero(logps: PairLogps, beta_B: Tensor, _: float) -> Tensor:
    chosen, rejected = beta_B * logps.chosen_ratio, beta_B * logps.rejected_ratio
    return 1 - torch.sigmoid(chosen) + torch.sigmoid(rejected)


def _apo_down(logps: PairLogps, beta_B: Tensor, _: float) -> Tensor:
    return torch.sigmoid(beta_B * logps.chosen_ratio) + 1 - torch.sigmoid(beta_B * logps.margin)


LOSSES: dict[str, LossForm] = {
    "logistic": LossForm(
        "DPO (Rafailov et al. 2023); with betas of a schedule SP2DPO",
        lambda logps, beta, _: logistic(logps.margin, beta),
    ),
    "hinge": LossForm(
        "SLiC's hinge (Zhao et al. 2023) on the DPO margin",
        lambda logps, beta, _: torch.relu(1 - beta * logps.margin),
    ),
    "ipo": LossForm(
        "IPO (Azar et al. 2023, Eq. 17), ratios per token as in TRL",
        lambda logps, beta, _: (logps.mean_margin - 1 / (2 * beta)) ** 2,
    ),
    "ipo_sum": LossForm(
        "IPO with summed ratios, as in the original DPO repository",
        lambda logps, beta, _: (logps.margin - 1 / (2 * beta)) ** 2,
    ),
    "cdpo": LossForm("cDPO: a share epsilon of labels is flipped (Mitchell 2023)", _smoothed, True),
    "robust": LossForm("robust DPO: unbiased under flips (Chowdhury et al. 2024)", _robust, True),
    "apo_zero": LossForm("APO-zero (D'Oosterlinck et al. 2024, Eq. 7)", _apo_zero),
    "apo_down": LossForm("APO-down (D'Oosterlinck et al. 2024, Eq. 8)", _apo_down),
}  # fmt: skip
