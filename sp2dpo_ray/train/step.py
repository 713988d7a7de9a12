"""One optimiser step of per-pair DPO, spread over workers.

In: the pairs of a step. Out: summed metrics; gradients are left on the parameters. Invariant: the
gradient is the mean over the step's pairs of all workers, so that neither the number of workers nor
the cut into micro-batches changes it (but for rounding).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sp2dpo_ray.errors import TrainingError
from sp2dpo_ray.modeling.forward import response_logps
from sp2dpo_ray.modeling.layout import collate, plan_batches
from sp2dpo_ray.objectives.pair_loss import LOSSES, PairLogps
from sp2dpo_ray.train.task import Pairs

# what is summed over the pairs of a step, under the names that DPO trainers share; margins and
# rewards: `logratio` is in nats, `rewards` is scaled by the pair's beta
METRICS = (
    "loss",
    "logratio/margins",
    "rewards/accuracies",
    "rewards/margins",
    "rewards/chosen",
    "rewards/rejected",
    "logps/chosen",
    "logps/rejected",
    "beta",
    "pairs",
    "tokens",
)


LossOf = Callable[[PairLogps, Tensor], Tensor]


def loss_form(name: str, epsilon: float) -> LossOf:
    """The loss of that name in the table; see `objectives/pair_loss.py`."""
    row = LOSSES[name]
    return lambda logps, beta_B: row.loss(logps, beta_B, epsilon)


@dataclass(frozen=True, slots=True)
class Computing:
    """How a batch is computed: nothing here changes what comes out, but for rounding."""

    pad_id: int
    device: torch.device
    tokens_per_batch: int
    layout: str
    head_bytes: int

    def batches(self, pairs: Pairs, order: Sequence[int]) -> list[list[int]]:
        """The pairs named in `order`, in batches within the token budget."""
        return plan_batches(pairs.encoded, order, self.tokens_per_batch, self.layout)


def pair_logps(model: Any, pairs: Pairs, index: list[int], how: Computing) -> PairLogps:
    """Policy and reference log-probabilities of the pairs at `index`; each (len(index),)."""
    batch = collate(pairs.encoded, index, how.pad_id, how.layout).to(how.device)
    chosen, rejected = response_logps(model, batch, head_bytes=how.head_bytes).view(2, -1)
    return PairLogps(
        chosen,
        rejected,
        pairs.ref_chosen[index].to(how.device),
        pairs.ref_rejected[index].to(how.device),
        *torch.bincount(batch.row_M, minlength=batch.num_rows).view(2, -1),
    )


def new_sums() -> Tensor:
    """Zeros in METRICS' order; (len(METRICS),) float64."""
    return torch.zeros(len(METRICS), dtype=torch.float64)


def accumulate(
    model: Any,
    pairs: Pairs,
    mine: list[int],
    *,
    global_pairs: int,
    how: Computing,
    loss_of: LossOf,
) -> Tensor:
    """Forward and backward over this worker's pairs of a step; returns sums in METRICS' order.

    Raises TrainingError with the pairs' ids when a loss is not finite.
    """
    sums = new_sums()
    for index in how.batches(pairs, mine):
        logps = pair_logps(model, pairs, index, how)
        beta = pairs.beta[index].to(how.device)
        margin = logps.margin
        losses = loss_of(logps, beta)
        # an infinite margin may have a loss of 0 and still spoil every weight
        if not bool(torch.isfinite(margin + losses).all()):
            ids = [pairs.encoded[i].prompt_id for i in index]
            raise TrainingError(
                f"margin or loss of a batch is not finite: margins {margin.tolist()}, losses "
                f"{losses.tolist()}; its pairs are {ids}. Lower train.learning_rate, or look at "
                "these pairs"
            )
        (losses.sum() / global_pairs).backward()
        sums += _sums(losses.detach(), logps, beta, pairs, index)
    return sums


@torch.no_grad()
def _sums(losses: Tensor, logps: PairLogps, beta: Tensor, pairs: Pairs, index: list[int]) -> Tensor:
    margin = logps.margin
    reward_chosen = beta * (logps.chosen - logps.ref_chosen)
    reward_rejected = beta * (logps.rejected - logps.ref_rejected)
    columns = (
        losses,
        margin,
        (margin > 0).float(),
        reward_chosen - reward_rejected,
        reward_chosen,
        reward_rejected,
        logps.chosen,
        logps.rejected,
        beta,
    )
    tokens = sum(
        2 * len(pairs.encoded[i].prompt)
        + len(pairs.encoded[i].chosen)
        + len(pairs.encoded[i].rejected)
        for i in index
    )
    counts = torch.tensor([len(index), tokens], dtype=torch.float64)
    return torch.cat([torch.stack([column.double().sum().cpu() for column in columns]), counts])


def reduce_over_workers(parameters: list[torch.nn.Parameter], sums: Tensor) -> Tensor:
    """Add gradients and metric sums of all workers, in place and in one message each."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return sums
    for parameter in parameters:
        if parameter.grad is None:  # a worker without pairs in the last step still takes part
            parameter.grad = torch.zeros_like(parameter)
    flat = torch.cat([parameter.grad.flatten() for parameter in parameters])
    dist.all_reduce(flat)
    offset = 0
    for parameter in parameters:
        parameter.grad.copy_(flat[offset : offset + parameter.numel()].view_as(parameter))
        offset += parameter.numel()
    moved = sums.to(flat.device)
    dist.all_reduce(moved)
    return moved.cpu()


def means(sums: Tensor) -> dict[str, float]:
    """Metric sums of a step as means over its pairs; counts stay counts."""
    named = dict(zip(METRICS, sums.tolist(), strict=True))
    pairs = max(named["pairs"], 1.0)
    counts = {"pairs", "tokens"}
    return {name: value if name in counts else value / pairs for name, value in named.items()}
