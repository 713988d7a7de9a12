"""Stage `schedule`: ensemble the annotations into one beta a pair.

In: `annotations/`, the map and the ensemble. Out: `schedule/`: the table as parquet and CSV, its
diagnostics, the excluded pairs, the same for the evaluation pairs, and a data card. Invariant: no
clock and no row order enters, so publishing twice gives identical bytes.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from sp2dpo_ray.config import TeacherSection
from sp2dpo_ray.core.annotation import Outcome
from sp2dpo_ray.core.artifact import Draft, read_manifest
from sp2dpo_ray.core.files import ANNOTATIONS, CARD, EXCLUDED, SCHEDULE
from sp2dpo_ray.core.hashing import sha256_file
from sp2dpo_ray.core.schedule.build import write_schedule
from sp2dpo_ray.core.schedule.card import card
from sp2dpo_ray.errors import DataError
from sp2dpo_ray.run import Run, Summary


def schedule(run: Run) -> Summary:
    """Ensemble the annotations into one beta a pair."""
    recipe = run.config.recipe
    facts = _facts(run)
    settings = {"recipe": recipe.json, "card": facts}
    provenance = run.provenance("schedule", settings, {"annotate": run.path("annotations")})

    def make(draft: Draft) -> None:
        figures = write_schedule(run.path("annotations", ANNOTATIONS), recipe, draft.path)
        if not figures["pairs"]:
            raise DataError(_nothing_whole(run, figures))
        text = card(recipe, figures, facts)
        (draft.path / CARD).write_text(text, encoding="utf-8")
        draft.summary |= {
            "pairs": figures["pairs"],
            "excluded": figures["excluded"],
            "columns": len(pq.read_schema(draft.path / SCHEDULE).names),
            "beta": {name: figures["beta"][name] for name in ("min", "mean", "max")},
            "sha256": sha256_file(draft.path / SCHEDULE),
            "exclusions": figures["exclusions"],
            "repeated_calls": figures["repeated_calls"],
            "conflicting_calls": figures["conflicting_calls"],
        }

    return run.publish_once(run.path("schedule"), provenance, make)


def _facts(run: Run) -> dict[str, Any]:
    """What the card says of data and teachers; names and hashes, no paths."""
    config = run.config
    pairs = read_manifest(run.path("pairs"))
    annotations = read_manifest(run.path("annotations"))
    source = config.data.source.rstrip("/").rpartition("/")[2]
    if config.data.revision:
        source = f"{config.data.source} at revision {config.data.revision}"
    rows = f", {pairs.summary['rows_in']:,} rows read" if pairs else ""
    excluded = run.path("pairs", EXCLUDED)
    reasons = pq.read_table(excluded)["reason"].to_pylist() if excluded.exists() else []
    return {
        "data": [f"pairs: {source}{rows}"],
        "excluded_before": dict(sorted(Counter(reasons).items())),
        "teachers": [_teacher(t) for t in config.teachers],
        "without_model": {
            t.name: t.instead_of_model for t in config.teachers if t.instead_of_model
        },
        "predictors": [t.name for t in config.teachers if t.is_predictor],
        "prompts": annotations.summary["prompts"] if annotations else "",
        "decoding": config.decoding.of_answers,
    }


def _teacher(teacher: TeacherSection) -> str:
    model = "distilled from other teachers" if teacher.is_predictor else teacher.model
    return f"teacher `{teacher.name}`: {teacher.provider}, {model}"


def _nothing_whole(run: Run, figures: Summary) -> str:
    """Why no pair can be scheduled, with the first call that went wrong."""
    counts = {name: row["outcomes"] for name, row in figures["coverage"].items()}
    message = (
        "no pair has a valid annotation from every teacher and variant; outcomes by teacher: "
        f"{counts}, pairs that miss a call by reason: {figures['exclusions']}"
    )
    columns = ["prompt_id", "teacher", "variant", "outcome", "detail", "text"]
    with pq.ParquetFile(run.path("annotations", ANNOTATIONS)) as file:
        for batch in file.iter_batches(columns=columns):
            bad = batch.filter(pc.not_equal(batch.column("outcome"), str(Outcome.OK)))
            if bad.num_rows:
                first = bad.slice(0, 1).to_pylist()[0]
                return message + (
                    f". The first: pair {first['prompt_id']}, {first['teacher']}/"
                    f"{first['variant']}: {first['outcome']}: {first['detail']}; its text was "
                    f"{(first['text'] or '')[:200]!r}"
                )
    return message
