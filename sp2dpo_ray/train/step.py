"""One optimiser step of per-pair DPO, spread over workers.

In: the pairs of a step. Out: summed metrics; gradients are left on the parameters. Invariant: the
gradient is the mean over the step's pairs of all workers, so that neither the number of workers nor
the cut into micro-batches changes it (but for rounding).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from sp2dpo_ray.core.methods import options_of
from sp2dpo_ray.errors import TrainingError
from sp2dpo_ray.modeling.layout import (
    SHARED,
    Batch,
    collate,
    plan_batches,
    row_tokens,
    two_row_tokens,
)
from sp2dpo_ray.objectives.pair_loss import LOSSES, PairLogps
from sp2dpo_ray.train.metrics import new_sums, pair_sums
from sp2dpo_ray.train.task import Pairs

LossOf = Callable[[PairLogps, Tensor], Tensor]
Score = Callable[[Batch], Tensor]
Backward = Callable[[Tensor, bool], None]


def loss_form(name: str, options: Mapping[str, float] | None = None) -> LossOf:
    """The loss of that name in the catalogue with its options; see `core/methods.py`."""
    loss, resolved = LOSSES[name], options_of(name, options or {})
    return lambda logps, beta_B: loss(logps, beta_B, resolved)


@dataclass(frozen=True, slots=True)
class Computing:
    """How a batch is computed: nothing here changes what comes out, but for rounding."""

    pad_id: int
    device: torch.device
    tokens_per_batch: int
    layout: str

    def batches(self, pairs: Pairs, order: Sequence[int]) -> list[list[int]]:
        """The pairs named in `order`, in batches within the token budget."""
        return plan_batches(pairs.encoded, order, self.tokens_per_batch, self.layout)

    def computed_tokens(self, pairs: Pairs, index: list[int]) -> int:
        """Tokens that a batch of these pairs computes, padding included."""
        sizes = [row_tokens(pairs.encoded[i], self.layout) for i in index]
        return sum(sizes) if self.layout == SHARED else len(sizes) * max(sizes)


def pair_logps(score: Score, pairs: Pairs, index: list[int], how: Computing) -> PairLogps:
    """Policy and reference log-probabilities of the pairs at `index`; each (len(index),).

    score: log-probabilities of a batch's rows.
    """
    batch = collate(pairs.encoded, index, how.pad_id, how.layout).to(how.device)
    chosen, rejected = score(batch).view(2, -1)
    return PairLogps(
        chosen,
        rejected,
        pairs.ref_chosen[index].to(how.device),
        pairs.ref_rejected[index].to(how.device),
        *torch.bincount(batch.row_M, minlength=batch.num_rows).view(2, -1),
    )


def passes_of(pairs: Pairs, everyone: Sequence[int], how: Computing, world: int) -> int:
    """The most batches that any of `world` workers makes of these pairs."""
    return max(len(how.batches(pairs, everyone[rank::world])) for rank in range(world))


def plain_backward(loss: Tensor, last: bool) -> None:
    """Backward where workers meet only after their last batch."""
    loss.backward()


def accumulate(
    score: Score,
    pairs: Pairs,
    everyone: Sequence[int],
    *,
    how: Computing,
    loss_of: LossOf,
    rank: int = 0,
    world: int = 1,
    lockstep: bool = False,
    backward: Backward = plain_backward,
) -> Tensor:
    """Forward and backward over this worker's pairs of a step; returns sums in METRICS' order.

    everyone: the step's pairs, dealt to `world` workers in turn. lockstep: all workers make as many
    passes as the one with the most; the others' last passes add nothing.
    Raises TrainingError with the pairs' ids when a loss is not finite.
    """
    sums = new_sums(how.device)
    finite = torch.ones((), dtype=torch.bool, device=how.device)
    done = []
    batches = how.batches(pairs, everyone[rank::world])
    passes = passes_of(pairs, everyone, how, world) if lockstep else len(batches)
    for number in range(1, passes + 1):
        if number > len(batches):
            shortest = min(everyone, key=lambda i: row_tokens(pairs.encoded[i], how.layout))
            backward(0.0 * pair_logps(score, pairs, [shortest], how).margin.sum(), number == passes)
            continue
        index = batches[number - 1]
        logps = pair_logps(score, pairs, index, how)
        beta = pairs.beta[index].to(how.device)
        losses = loss_of(logps, beta)
        backward(losses.sum() / len(everyone), number == passes)
        done.append((index, logps.margin.detach(), losses.detach()))
        # an infinite margin may have a loss of 0 and still spoil every weight
        finite &= torch.isfinite(logps.margin + losses).all()
        sums += pair_sums(
            losses.detach(),
            logps,
            beta,
            tokens=sum(two_row_tokens(pairs.encoded[i]) for i in index),
            computed_tokens=how.computed_tokens(pairs, index),
        )
    if not bool(finite):  # looked at once a step: a look at every batch would keep a GPU waiting
        _refuse(pairs, done)
    return sums


def _refuse(pairs: Pairs, done: list[tuple[list[int], Tensor, Tensor]]) -> None:
    for index, margin, losses in done:
        if not bool(torch.isfinite(margin + losses).all()):
            ids = [pairs.encoded[i].prompt_id for i in index]
            raise TrainingError(
                f"margin or loss of a batch is not finite: margins {margin.tolist()}, losses "
                f"{losses.tolist()}; its pairs are {ids}. Lower train.learning_rate, or look at "
                "these pairs"
            )


def reduce_sums(sums: Tensor) -> Tensor:
    """Metric sums of all workers, on the CPU; one message an interval."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(sums)
    return sums.cpu()
