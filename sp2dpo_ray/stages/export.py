"""Stage `export`: the schedule joined to its pairs, as a Hugging Face data set folder.

In: `pairs/`, `schedule/`, `export.arm`. Out: `export/<arm>/` with data, betas and the data card.
Invariant: what another trainer reads there is what our own would train with.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sp2dpo_ray.core.arms import parse_arm
from sp2dpo_ray.core.artifact import Draft, open_artifact
from sp2dpo_ray.core.files import CARD, EVAL, TRAIN
from sp2dpo_ray.core.schedule.export import joined, write_dataset
from sp2dpo_ray.core.schedule.published import read_columns
from sp2dpo_ray.core.schedule.recipe import Recipe
from sp2dpo_ray.run import Run, Summary

BESIDE = ["category", "teacher_std"]


def export(run: Run) -> Summary:
    """Write the data set folder."""
    arm = parse_arm(run.config.export.arm)
    folder, source = run.path("export", arm.folder), run.path("schedule")
    inputs = {"prepare": run.path("pairs"), "schedule": source}
    provenance = run.provenance("export", {"arm": arm.name}, inputs)

    def make(draft: Draft) -> None:
        recipe = Recipe.from_json(open_artifact(source).settings["recipe"])
        columns = None if arm.derived else [*BESIDE, *([arm.column] if arm.column else [])]
        schedules = {split: read_columns(source, columns, split=split) for split in (TRAIN, EVAL)}
        tables = {}
        for split, schedule in schedules.items():
            pairs = _scheduled(pq.read_table(run.pairs_file(split)), schedule)
            ids = pairs["prompt_id"].to_pylist()
            betas = arm.betas(schedule, recipe, ids, training=schedules[TRAIN])
            tables[split] = joined(pairs, betas, schedule)
        card = (source / CARD).read_text(encoding="utf-8")
        write_dataset(draft.path, tables, card, f"{arm.name}: {arm.title}")
        draft.summary |= {
            "pairs": tables[TRAIN].num_rows,
            "eval_pairs": tables[EVAL].num_rows,
            "arm": arm.name,
        }

    return run.publish_once(folder, provenance, make) | {"folder": str(folder)}


def _scheduled(pairs: pa.Table, schedule: pa.Table) -> pa.Table:
    return pairs.filter(pc.is_in(pairs["prompt_id"], schedule["prompt_id"].combine_chunks()))
