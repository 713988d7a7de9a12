"""Margins of the held-out pairs under the trained student, each pair once.

In: the student on all workers. Out: one table, written by rank 0. Invariant: margins are in nats
and know no beta, so that arms can be compared.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist

from sp2dpo_ray.core.files import HELD_OUT
from sp2dpo_ray.train.step import Computing, pair_logps, passes_of
from sp2dpo_ray.train.strategies import Strategy
from sp2dpo_ray.train.task import TrainTask, load_eval_pairs

COLUMNS = (
    ("prompt_id", pa.string()),
    ("margin", pa.float64()),
    ("reference_margin", pa.float64()),
)


@torch.no_grad()
def score_held_out(
    strategy: Strategy, task: TrainTask, how: Computing, rank: int, world: int
) -> None:
    """The log-ratio margin of every held-out pair, in nats, into one table."""
    strategy.model.eval()
    pairs = load_eval_pairs(task)
    everyone = list(range(len(pairs)))
    mine = how.batches(pairs, everyone[rank::world])
    passes = passes_of(pairs, everyone, how, world) if strategy.lockstep else len(mine)
    rows = []
    for number in range(passes):
        # in lockstep a worker without a batch makes the pass with the others, for nothing
        index = mine[number] if number < len(mine) else everyone[-1:]
        logps = pair_logps(strategy.score, pairs, index, how)
        if number < len(mine):
            reference = (logps.ref_chosen - logps.ref_rejected).tolist()
            ids = [pairs.encoded[i].prompt_id for i in index]
            rows += list(zip(ids, logps.margin.tolist(), reference, strict=True))
    gathered: list[Any] = [rows]
    if world > 1:
        gathered = [None] * world
        dist.all_gather_object(gathered, rows)
    if rank == 0:
        together = sorted(row for part in gathered for row in part)
        columns = list(zip(*together, strict=True)) or [()] * len(COLUMNS)
        names, kinds = zip(*COLUMNS, strict=True)
        arrays = [pa.array(column, kind) for column, kind in zip(columns, kinds, strict=True)]
        pq.write_table(pa.table(arrays, names=list(names)), task.output / HELD_OUT)
