"""Stage `schedule`: ensemble the annotations into one beta a pair.

In: `annotations/`, the map and the ensemble. Out: `schedule/`: the table as parquet and CSV, its
diagnostics, the excluded pairs, and the same for the evaluation pairs. Invariant: no clock and no
row order enters, so publishing twice gives identical bytes.
"""

from __future__ import annotations

from collections import Counter

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
import pyarrow.parquet as pq

from sp2dpo_ray.core.annotation import Outcome
from sp2dpo_ray.core.arms import JMAMP_COLUMN
from sp2dpo_ray.core.artifact import Draft
from sp2dpo_ray.core.ensemble import LinearMap
from sp2dpo_ray.core.files import (
    ANNOTATIONS,
    DIAGNOSTICS,
    EVAL,
    EVAL_DIAGNOSTICS,
    EVAL_SCHEDULE,
    EXCLUDED,
    SCHEDULE,
    SCHEDULE_CSV,
    TRAIN,
)
from sp2dpo_ray.core.hashing import sha256_file
from sp2dpo_ray.core.schedule import Panel, Schedule, build_schedule
from sp2dpo_ray.errors import DataError
from sp2dpo_ray.run import Run, Summary


def schedule(run: Run) -> Summary:
    """Ensemble the annotations into one beta a pair."""
    config = run.config
    panel = Panel(tuple(t.name for t in config.teachers), config.prompts.variants)
    settings = {
        "panel": [panel.teachers, panel.variants],
        "mapping": config.mapping.model_dump(mode="json"),
        "ensemble": config.ensemble.model_dump(mode="json"),
    }
    beta_of = LinearMap(config.mapping.beta_min, config.mapping.beta_max)
    provenance = run.provenance("schedule", settings, {"annotate": run.path("annotations")})

    def make(draft: Draft) -> None:
        annotations = pq.read_table(run.path("annotations", ANNOTATIONS))
        made = build_schedule(_split(annotations, TRAIN), panel, beta_of)
        if made.table.num_rows == 0:
            raise DataError(_nothing_valid(annotations))
        held_out = build_schedule(_split(annotations, EVAL), panel, beta_of)
        draft.write_table(SCHEDULE, made.table)
        csv.write_csv(made.table, draft.path / SCHEDULE_CSV)
        draft.write_table(DIAGNOSTICS, made.diagnostics)
        draft.write_table(EXCLUDED, made.excluded)
        draft.write_table(EVAL_SCHEDULE, held_out.table)
        draft.write_table(EVAL_DIAGNOSTICS, held_out.diagnostics)
        draft.summary |= _schedule_summary(made) | {"sha256": sha256_file(draft.path / SCHEDULE)}

    return run.publish_once(run.path("schedule"), provenance, make)


def _split(annotations: pa.Table, name: str) -> pa.Table:
    return annotations.filter(pc.equal(annotations["split"], name))


def _nothing_valid(annotations: pa.Table) -> str:
    bad = [row for row in annotations.to_pylist() if row["outcome"] != Outcome.OK]
    first = bad[0]
    counts = dict(Counter(f"{row['teacher']}/{row['variant']}: {row['outcome']}" for row in bad))
    return (
        "no pair has a valid annotation from every teacher and variant "
        f"(failed calls: {counts}). The first: pair {first['prompt_id']}, {first['teacher']}/"
        f"{first['variant']}: {first['detail']}; its text was {(first['text'] or '')[:200]!r}"
    )


def _schedule_summary(made: Schedule) -> Summary:
    beta = made.table[JMAMP_COLUMN].to_numpy()
    return {
        "pairs": made.table.num_rows,
        "excluded": made.excluded.num_rows,
        "columns": made.table.num_columns,
        "beta": {"min": float(beta.min()), "mean": float(beta.mean()), "max": float(beta.max())},
    }
