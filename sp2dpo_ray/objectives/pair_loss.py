"""The pair loss: DPO with one temperature for each pair (Eq. 5).

Shapes: B pairs. Margin: the policy's log-ratio of chosen minus rejected, less the reference's
(Eq. 7). Invariant: elementwise; how pairs are averaged is the training step's business.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class PairLogps:
    """Summed log-probabilities of the two responses under policy and reference; each (B,)."""

    chosen: Tensor
    rejected: Tensor
    ref_chosen: Tensor
    ref_rejected: Tensor

    @property
    def margin(self) -> Tensor:
        """r(x, y_w) - r(x, y_l), in nats (Eqs. 3 and 7)."""
        return (self.chosen - self.rejected) - (self.ref_chosen - self.ref_rejected)


def pair_loss(margin_B: Tensor, beta_B: Tensor) -> Tensor:
    """-log sigmoid(beta_i * margin_i) of each pair (Eqs. 5 and 6); (B,).

    Its gradient in the margin is -beta_i * sigmoid(-beta_i * margin_i) (Eq. 8). With a constant
    beta this is the loss of Rafailov et al. (2023).
    """
    return -F.logsigmoid(beta_B * margin_B)
