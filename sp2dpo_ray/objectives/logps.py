"""Sequence log-probabilities from the logits of response tokens alone.

Shapes: R rows, M response tokens over all rows, V vocabulary. Invariant: sums are taken in float32
whatever the model computes in, over response tokens and nothing else.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def token_logps(logits_MV: Tensor, targets_M: Tensor) -> Tensor:
    """log pi(target) of each position; (M,) float32, or float64 where the logits are."""
    wide = logits_MV if logits_MV.dtype == torch.float64 else logits_MV.float()
    return -F.cross_entropy(wide, targets_M, reduction="none")


def sum_by_row(values_M: Tensor, row_M: Tensor, num_rows: int) -> Tensor:
    """Sum of the tokens' values in each row; (R,)."""
    return values_M.new_zeros(num_rows).index_add(0, row_M, values_M)
