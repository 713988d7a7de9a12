"""One optimiser step of per-pair DPO, spread over workers.

In: the pairs of a step. Out: summed metrics; gradients are left on the parameters. Invariant: the
gradient is the mean over the step's pairs of all workers, so that neither the number of workers nor
the cut into micro-batches changes it (but for rounding).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from sp2dpo_ray.errors import TrainingError
from sp2dpo_ray.modeling.layout import (
    SHARED,
    Batch,
    collate,
    plan_batches,
    row_tokens,
    two_row_tokens,
)
from sp2dpo_ray.objectives.pair_loss import PairLogps
from sp2dpo_ray.objectives.step_methods import StepMethod
from sp2dpo_ray.train.loss import Loss
from sp2dpo_ray.train.metrics import new_sums, pair_sums
from sp2dpo_ray.train.task import Pairs

Score = Callable[[Batch], Tensor]
Backward = Callable[[Tensor, bool], None]
Traced = tuple[int, float, float]  # a pair's place, its beta, its margin


@dataclass(frozen=True, slots=True)
class Team:
    """This worker among the others. lockstep: every pass is a meeting, so all workers make as many
    as the one with the most."""

    rank: int = 0
    world: int = 1
    lockstep: bool = False


ALONE = Team()


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

    def largest(self, pairs: Pairs, plan: Sequence[Sequence[int]], workers: int) -> list[int]:
        """The batch of the most tokens among all that will come: the longest pairs alone may fill
        the budget worse than others do."""
        batches = (
            batch
            for step in plan
            for rank in range(workers)
            for batch in self.batches(pairs, step[rank::workers])
        )
        return max(batches, key=lambda batch: self.computed_tokens(pairs, batch))

    def computed_tokens(self, pairs: Pairs, index: list[int]) -> int:
        """Tokens that a batch of these pairs computes, padding included."""
        sizes = [row_tokens(pairs.encoded[i], self.layout) for i in index]
        return sum(sizes) if self.layout == SHARED else len(sizes) * max(sizes)


def pair_logps(score: Score, pairs: Pairs, index: list[int], how: Computing) -> PairLogps:
    """Policy and reference log-probabilities of the pairs at `index`; each (len(index),).

    score: log-probabilities of a batch's rows, or what `unsure_logps` gives.
    """
    batch = collate(pairs.encoded, index, how.pad_id, how.layout).to(how.device)
    found = score(batch)
    chosen, rejected = (found if found.dim() == 1 else found[0]).view(2, -1)
    counted = None
    if found.dim() > 1:
        nothing = torch.zeros_like(chosen)
        counted = PairLogps(*found[1].view(2, -1), nothing, nothing, *found[2].view(2, -1))
    return PairLogps(
        chosen,
        rejected,
        pairs.ref_chosen[index].to(how.device),
        pairs.ref_rejected[index].to(how.device),
        *torch.bincount(batch.row_M, minlength=batch.num_rows).view(2, -1),
        counted,
    )


@dataclass(frozen=True, slots=True)
class Pass:
    """A batch that this worker computes. counts: False for a pass that only keeps step with the
    others."""

    index: list[int]
    counts: bool
    last: bool


def passes(pairs: Pairs, everyone: Sequence[int], how: Computing, team: Team) -> Iterator[Pass]:
    """This worker's batches of the pairs, which are dealt to the workers in turn."""
    mine = how.batches(pairs, everyone[team.rank :: team.world])
    count = len(mine)
    if team.lockstep:  # all know all cuts, so nobody has to ask
        shares = (everyone[rank :: team.world] for rank in range(team.world))
        count = max(len(how.batches(pairs, share)) for share in shares)
    for number in range(count):
        counts = number < len(mine)
        index = mine[number] if counts else [_shortest(pairs, everyone, how)]
        yield Pass(index, counts, number == count - 1)


def _shortest(pairs: Pairs, everyone: Sequence[int], how: Computing) -> int:
    return min(everyone, key=lambda i: row_tokens(pairs.encoded[i], how.layout))


@torch.no_grad()
def measure(
    score: Score, pairs: Pairs, everyone: Sequence[int], how: Computing, method: StepMethod,
    team: Team,
) -> Tensor:  # fmt: skip
    """One number for each pair of the step, from all workers; (N,) float64, in the order of
    `everyone`. Dropout draws the same places here as in the pass that follows."""
    place = {pair: position for position, pair in enumerate(everyone)}
    found = torch.zeros(len(everyone), dtype=torch.float64, device=how.device)
    cuda = [how.device] if how.device.type == "cuda" else []
    with torch.random.fork_rng(cuda):
        for each in passes(pairs, everyone, how, team):
            values = method.measure(pair_logps(score, pairs, each.index, how))
            if each.counts:
                found[[place[i] for i in each.index]] = values.double()
    if team.world > 1:
        dist.all_reduce(found)
    return found


def plain_backward(loss: Tensor, last: bool) -> None:
    """Backward where workers meet only after their last batch."""
    loss.backward()


def accumulate(
    score: Score,
    pairs: Pairs,
    everyone: Sequence[int],
    *,
    how: Computing,
    loss: Loss,
    step: int = 1,
    team: Team = ALONE,
    backward: Backward = plain_backward,
    trace: list[Traced] | None = None,
) -> Tensor:
    """Forward and backward over this worker's pairs of a step; returns sums in METRICS' order.

    everyone: the step's pairs. trace: takes each pair's beta and margin, which is a pause on a GPU.
    Raises TrainingError with the pairs' ids when a loss is not finite.
    """
    sums = new_sums(how.device)
    finite = torch.ones((), dtype=torch.bool, device=how.device)
    done = []
    terms = None
    if method := loss.step_method:
        measured = measure(score, pairs, everyone, how, method, team)
        terms = loss.terms(measured, pairs.beta[list(everyone)], step)
        place = {pair: position for position, pair in enumerate(everyone)}
    for each in passes(pairs, everyone, how, team):
        index = each.index
        logps = pair_logps(score, pairs, index, how)
        if not each.counts:
            backward(0.0 * logps.margin.sum(), each.last)
            continue
        beta = loss.betas(logps, pairs.beta[index].to(how.device))
        own = None
        if terms is not None:
            own = terms.at([place[i] for i in index])
            beta = own.beta.to(beta)
        losses = _weighed(loss(logps, beta, own), logps, pairs, index)
        backward(losses.sum() / len(everyone), each.last)
        done.append((index, logps.margin.detach(), losses.detach()))
        if trace is not None:
            trace += zip(index, beta.tolist(), logps.margin.tolist(), strict=True)
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


def _weighed(losses_B: Tensor, logps: PairLogps, pairs: Pairs, index: list[int]) -> Tensor:
    """The losses under the pairs' weights; of supervised pairs the negative log-probability per
    token of the chosen response instead."""
    if pairs.weight is not None:
        losses_B = losses_B * pairs.weight[index].to(losses_B)
    if pairs.supervised is None:
        return losses_B
    taught = -logps.chosen / logps.chosen_tokens.clamp(min=1)
    return torch.where(pairs.supervised[index].to(losses_B.device), taught, losses_B)


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
