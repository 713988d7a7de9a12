"""The pairs of an arm: which it trains on, in which order, with which beta and weight.

In: an arm, the prepared pairs, the schedule, the reference. Out: one table, all that training sees
of the schedule. Invariant: without a selection every arm has the same pairs, those of the schedule
where there is one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sp2dpo_ray.core.arms import Arm
from sp2dpo_ray.core.artifact import open_artifact, read_manifest
from sp2dpo_ray.core.derived import WEIGHTS, panel_margin
from sp2dpo_ray.core.files import BETAS, REFERENCE, TRAIN
from sp2dpo_ray.core.methods import METHODS, options_of
from sp2dpo_ray.core.pairs import SCORES
from sp2dpo_ray.core.schedule.ensemble import Floats
from sp2dpo_ray.core.schedule.published import read_columns
from sp2dpo_ray.core.schedule.recipe import Recipe
from sp2dpo_ray.core.selections import SELECTIONS, choose
from sp2dpo_ray.errors import DataError
from sp2dpo_ray.run import Run
from sp2dpo_ray.stages.reference import reference_folder


def write_betas(run: Run, arm: Arm, folder: Path) -> int:
    """betas.parquet: prompt_id and beta, weight and supervised where the arm has them; returns the
    number of pairs. Raises DataError with what the arm needs and the run does not have."""
    known = Known(run)
    ids = known.ids
    if not ids:
        raise DataError("the schedule holds none of the training pairs; run: sp2dpo schedule")
    chosen = None
    if arm.selection:  # before the betas: some methods scale them to a mean over what is trained on
        name, share = arm.selection
        chosen = choose(SELECTIONS[name], share, known)
        ids = [ids[place] for place in chosen.places]
    columns = {
        "prompt_id": pa.array(ids),
        "beta": pa.array(arm.betas(known.table(arm), known.recipe, ids)),
    }
    method = run.config.train_of(arm).loss
    if METHODS[method].weighted:
        options = options_of(method, run.config.train.loss_options.get(method, {}))
        weights = WEIGHTS[method](known.margin(), options)
        kept = weights if chosen is None else weights[chosen.places]
        columns["weight"] = pa.array(kept, pa.float32())
    table = pa.table(columns)
    if chosen is not None and chosen.supervised.any():
        table = table.append_column("supervised", pa.array(chosen.supervised))
    pq.write_table(table, folder / BETAS)
    return table.num_rows


@dataclass
class Known:
    """What a run knows of its training pairs; each is read when it is asked for."""

    run: Run

    @cached_property
    def recipe(self) -> Recipe | None:
        """Of the schedule, if there is one."""
        if not read_manifest(self.run.path("schedule")):
            return None
        return Recipe.from_json(open_artifact(self.run.path("schedule")).settings["recipe"])

    @cached_property
    def ids(self) -> list[str]:
        """The training pairs in their prepared order: those that the schedule holds, if any."""
        path = self.run.pairs_file(TRAIN)
        names: list[str] = pq.read_table(path, columns=["prompt_id"])["prompt_id"].to_pylist()
        if self.recipe is None:
            return names
        table = read_columns(self.run.path("schedule"), [])
        scheduled = set(table["prompt_id"].to_pylist())
        return [name for name in names if name in scheduled]

    def table(self, arm: Arm) -> pa.Table | None:
        """The schedule, with what the arm reads of it."""
        if self.recipe is None:
            return None
        columns = None if arm.derived else [arm.column] if arm.column else []
        return read_columns(self.run.path("schedule"), columns)

    def margin(self) -> Floats:
        """What `train.margin` names: the data's score gap, or the panel's gap as log-odds; (N,)."""
        source = self.run.config.train.margin
        if source == "scores":
            path = self.run.pairs_file(TRAIN)
            lacking = [name for name in SCORES if name not in pq.read_schema(path).names]
            if lacking:
                raise DataError(
                    f"train.margin: scores needs the columns {list(SCORES)} in the data, {lacking} "
                    "are missing; train.margin: panel takes the teachers' gap"
                )
            table = _rows(pq.read_table(path, columns=["prompt_id", *SCORES]), self.ids)
            better, worse = (table[name].to_numpy().astype(np.float64) for name in SCORES)
            if not np.isfinite(better - worse).all():
                row = int(np.flatnonzero(~np.isfinite(better - worse))[0])
                raise DataError(f"pair {self.ids[row]}: its scores are no numbers")
            return np.asarray(better - worse)
        if self.recipe is None:
            raise DataError(
                "train.margin: panel takes the teachers' gap from a schedule, and there is none; "
                "run: sp2dpo schedule, or take train.margin: scores"
            )
        table = _rows(read_columns(self.run.path("schedule")), self.ids)
        return panel_margin(table, self.recipe)

    def reference_gap(self) -> Floats:
        """Log-probability a token of the chosen less the rejected response under the frozen
        student, nats; (N,)."""
        columns = ["prompt_id", "chosen_logp", "rejected_logp", "chosen", "rejected"]
        path = reference_folder(self.run) / REFERENCE
        table = _rows(pq.read_table(path, columns=columns), self.ids)
        better, worse = (
            table[f"{name}_logp"].to_numpy().astype(np.float64)
            / np.maximum(pc.list_value_length(table[name]).to_numpy(), 1)
            for name in ("chosen", "rejected")
        )
        return np.asarray(better - worse)

    def implicit(self) -> Floats:
        """Log-ratio margins under a student trained on a part, nats; (N,)."""
        from sp2dpo_ray.stages.probes import implicit_margins

        return implicit_margins(self.run, self.ids)

    def difficulty(self) -> Floats:
        """Held-out losses of students that did not see the pair; (N,)."""
        from sp2dpo_ray.stages.probes import difficulties

        return difficulties(self.run, self.ids)


def _rows(table: pa.Table, ids: list[str]) -> pa.Table:
    """The rows of those pairs, in their order."""
    return table.take(pc.index_in(pa.array(ids), table["prompt_id"].combine_chunks()))
