"""Where betas move during training: what each pair was trained with, at every step.

In: the traced pairs of all workers. Out: one table beside the metrics. Invariant: rows after a
restored step are dropped, so that the table of a resumed run is that of an undisturbed one; with it
a schedule whose betas moved stays auditable.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch.distributed as dist

from sp2dpo_ray.core.files import TRAJECTORY
from sp2dpo_ray.core.lines import read_json_lines
from sp2dpo_ray.train.step import Team, Traced
from sp2dpo_ray.train.task import Pairs

SCHEMA = pa.schema(
    [
        ("step", pa.int32()),
        ("prompt_id", pa.string()),
        ("prior", pa.float64()),
        ("beta", pa.float64()),
        ("margin", pa.float64()),  # nats, before the step's update
    ]
)


class Trajectory:
    """Rows as they come, a line a step; `close` makes the table of them. The lines stay until the
    whole training has ended: a worker that is replaced after the last step closes once more."""

    def __init__(self, folder: Path, pairs: Pairs, done: int) -> None:
        self._pairs = pairs
        self._table = folder / TRAJECTORY
        self._lines = self._table.with_suffix(".jsonl")
        kept = [row for row in read_json_lines(self._lines) if row[0] <= done] if done else []
        if not dist.is_initialized() or dist.get_rank() == 0:
            text = "".join(json.dumps(row) + "\n" for row in kept)
            self._lines.write_text(text, encoding="utf-8")

    def add(self, step: int, trace: list[Traced], team: Team) -> list[float]:
        """Note a step's pairs of all workers, which all call this; returns their betas."""
        everyone: list[Any] = [trace]
        if team.world > 1:
            everyone = [None] * team.world
            dist.all_gather_object(everyone, trace)
        rows = sorted(row for part in everyone for row in part)
        if team.rank == 0:
            with self._lines.open("a", encoding="utf-8") as file:
                file.write(json.dumps([step, rows]) + "\n")
        return [beta for _, beta, _ in rows]

    def close(self) -> None:
        """trajectory.parquet, in the order of steps, and within a step of the pairs."""
        pairs = self._pairs
        with pq.ParquetWriter(self._table, SCHEMA, compression="zstd") as writer:
            for step, rows in read_json_lines(self._lines):
                places = [place for place, _, _ in rows]
                columns = [
                    [step] * len(rows),
                    [pairs.encoded[place].prompt_id for place in places],
                    pairs.beta[places].double().tolist(),
                    [beta for _, beta, _ in rows],
                    [margin for _, _, margin in rows],
                ]
                writer.write_table(pa.table(columns, schema=SCHEMA))
