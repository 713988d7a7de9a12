"""Margins of the held-out pairs under the trained student, each pair once.

In: the student on all workers. Out: one table, written by rank 0. Invariant: margins are in nats
and know no beta, so that arms can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist

from sp2dpo_ray.core.files import EVAL, HELD_OUT, PAIRS_TABLE
from sp2dpo_ray.core.halves import prompts_of, tuning_half
from sp2dpo_ray.train.step import Computing, Team, pair_logps, passes
from sp2dpo_ray.train.strategies import Strategy
from sp2dpo_ray.train.task import Pairs, TrainTask, load_pairs_to_score

COLUMNS = (
    ("prompt_id", pa.string()),
    ("margin", pa.float64()),
    ("reference_margin", pa.float64()),
)


@torch.no_grad()
def interim_scores(
    strategy: Strategy, pairs: Pairs, half: Sequence[int], how: Computing, team: Team
) -> dict[str, float]:
    """Accuracy and margin on some of the pairs, the student being put back to training; the same
    numbers on every worker. half: places of the pairs that choose."""
    strategy.model.eval()
    sums = torch.zeros(3, dtype=torch.float64, device=how.device)
    for each in passes(pairs, half, how, team):
        margin = pair_logps(strategy.score, pairs, each.index, how).margin.double()
        if each.counts:
            right = (torch.sign(margin) + 1) / 2  # a tie is half right
            sums += torch.stack([right.sum(), margin.sum(), torch.ones_like(margin).sum()])
    if team.world > 1:
        dist.all_reduce(sums)
    strategy.model.train()
    right, total, count = sums.tolist()
    if not count:  # one pair alone, which is of the half that reports
        return {}
    return {"held_out/accuracy": right / count, "held_out/margin": total / count}


def places_that_choose(task: TrainTask, pairs: Pairs) -> list[int]:
    """The tuning half of the held-out pairs, by their prompts, as a sweep cuts it."""
    file = task.pairs / PAIRS_TABLE.format(split=EVAL)
    half = tuning_half(prompts_of(file, [pair.prompt_id for pair in pairs.encoded]))
    places: list[int] = half.nonzero()[0].tolist()
    return places


@torch.no_grad()
def score_held_out(strategy: Strategy, task: TrainTask, how: Computing, team: Team) -> None:
    """The log-ratio margin of every held-out pair (of a probe: training pair), in nats, into one
    table."""
    strategy.model.eval()
    pairs = load_pairs_to_score(task)
    rows = []
    for each in passes(pairs, range(len(pairs)), how, team):
        logps = pair_logps(strategy.score, pairs, each.index, how)
        if each.counts:
            reference = (logps.ref_chosen - logps.ref_rejected).tolist()
            ids = [pairs.encoded[i].prompt_id for i in each.index]
            rows += list(zip(ids, logps.margin.tolist(), reference, strict=True))
    gathered: list[Any] = [rows]
    if team.world > 1:
        gathered = [None] * team.world
        dist.all_gather_object(gathered, rows)
    if team.rank == 0:
        together = sorted(row for part in gathered for row in part)
        columns = list(zip(*together, strict=True)) or [()] * len(COLUMNS)
        names, kinds = zip(*COLUMNS, strict=True)
        arrays = [pa.array(column, kind) for column, kind in zip(columns, kinds, strict=True)]
        pq.write_table(pa.table(arrays, names=list(names)), task.output / HELD_OUT)
