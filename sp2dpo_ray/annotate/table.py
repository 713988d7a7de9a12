"""The annotations table: every expected call, with what the journal holds of it, read strictly.

In: pairs, the panel, the journal's results. Out: rows of ANNOTATION_SCHEMA. Pure, apart
from the results handed in: publishing twice from one journal gives identical bytes.
"""

from __future__ import annotations

from collections import Counter

import pyarrow as pa

from sp2dpo_ray.annotate.journal import Result
from sp2dpo_ray.core.annotation import Outcome, read_answer
from sp2dpo_ray.core.calls import TeacherIdentity, calls_of
from sp2dpo_ray.core.pairs import pairs_from
from sp2dpo_ray.core.prompts import PromptSet
from sp2dpo_ray.core.schedule import ANNOTATION_SCHEMA


def annotations_table(
    pairs_by_split: dict[str, pa.Table],
    teachers: tuple[TeacherIdentity, ...],
    prompts: PromptSet,
    results: dict[str, Result],
) -> pa.Table:
    """One row for each (pair, teacher, variant), in the order of the pairs."""
    rows = [
        {
            "prompt_id": call.prompt_id,
            "split": split,
            "teacher": call.teacher,
            "variant": call.variant,
            "key": call.key,
            **_reading(results.get(call.key)),
        }
        for split, pairs in pairs_by_split.items()
        for pair in pairs_from(pairs)
        for call in calls_of(pair, teachers, prompts)
    ]
    return pa.Table.from_pylist(rows, schema=ANNOTATION_SCHEMA)


def _reading(result: Result | None) -> dict[str, object]:
    if result is None:
        return {"outcome": str(Outcome.NOT_ATTEMPTED), "detail": "nothing on record"}
    columns: dict[str, object] = {
        "outcome": result.outcome,
        "detail": result.detail,
        "text": result.text,
        "served_model": result.served_model,
        "prompt_tokens": result.prompt_tokens,
        "completion_tokens": result.completion_tokens,
    }
    if result.outcome != Outcome.OK:
        return columns
    reading = read_answer(result.text)
    columns |= {"outcome": str(reading.outcome), "detail": reading.detail}
    if reading.annotation is not None:
        columns["category"] = str(reading.annotation.category)
        columns["magnitude"] = reading.annotation.magnitude
        columns["confidence"] = reading.annotation.confidence
    return columns


def completeness(annotations: pa.Table) -> dict[str, object]:
    """Outcomes over all calls, and how many pairs have a valid answer to every call."""
    outcomes = Counter(annotations["outcome"].to_pylist())
    seen = set(annotations["prompt_id"].to_pylist())
    faulty = {
        prompt_id
        for prompt_id, outcome in zip(
            annotations["prompt_id"].to_pylist(), annotations["outcome"].to_pylist(), strict=True
        )
        if outcome != Outcome.OK
    }
    return {
        "outcomes": dict(sorted(outcomes.items())),
        "pairs_complete": len(seen) - len(faulty),
        "pairs_incomplete": len(faulty),
    }
