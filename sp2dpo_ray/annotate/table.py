"""The annotations table: every expected call, with what the journal holds of it, read strictly.

In: pairs, the panel, the answers of a journal. Out: rows of ANNOTATION_SCHEMA, a chunk of pairs at
a time. Invariant: the rows depend on the pairs, the panel and the answers alone, so publishing
twice from one journal gives identical bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import isnan
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sp2dpo_ray.annotate.answers import Answer, Answers
from sp2dpo_ray.core.annotation import Outcome, read_answer
from sp2dpo_ray.core.calls import Call, TeacherIdentity, calls_of
from sp2dpo_ray.core.economy import settled
from sp2dpo_ray.core.files import TRAIN
from sp2dpo_ray.core.pairs import PAIR_FIELDS, Pair, pairs_from
from sp2dpo_ray.core.prompts import PromptSet
from sp2dpo_ray.core.redaction import redact_pair
from sp2dpo_ray.core.schedule.mapping import BetaMap
from sp2dpo_ray.core.schedule.reading import ANNOTATION_SCHEMA

PAIRS_AT_ONCE = 2_000
CALL = ("prompt_id", "split", "teacher", "variant", "key")  # what is known before it is asked
WHOLE = (Outcome.OK, Outcome.SKIPPED, Outcome.PREDICTED)
Row = dict[str, Any]
Predict = Callable[[list[Pair]], list[Row | None]]


@dataclass(frozen=True, slots=True)
class Expected:
    """Which calls a complete table has, and which of them may be missing.

    early_stop: tolerance and map of the economy mode, or None.
    """

    teachers: tuple[TeacherIdentity, ...]
    prompts: PromptSet
    redact: bool = False
    early_stop: tuple[float, BetaMap] | None = None


@dataclass(slots=True)
class Completeness:
    """Outcomes over all calls, pairs with and without a whole set of answers, what was masked."""

    outcomes: Counter[str] = field(default_factory=Counter)
    pairs_complete: int = 0
    pairs_incomplete: int = 0
    redacted: Counter[str] = field(default_factory=Counter)

    def add(self, rows: list[Row], calls_a_pair: int) -> None:
        self.outcomes.update(row["outcome"] for row in rows)
        for start in range(0, len(rows), calls_a_pair):
            pair = rows[start : start + calls_a_pair]
            complete = all(row["outcome"] in WHOLE for row in pair)
            self.pairs_complete += complete
            self.pairs_incomplete += not complete

    @property
    def summary(self) -> Row:
        return {
            "outcomes": dict(sorted(self.outcomes.items())),
            "pairs_complete": self.pairs_complete,
            "pairs_incomplete": self.pairs_incomplete,
        }


def pair_chunks(path: Path) -> Iterator[list[Pair]]:
    """The pairs of a file, so many at a time."""
    columns = [field.name for field in PAIR_FIELDS]
    for batch in pq.ParquetFile(path).iter_batches(batch_size=PAIRS_AT_ONCE, columns=columns):
        yield pairs_from(pa.Table.from_batches([batch]))


def write_annotations(
    path: Path, files: dict[str, Path], expected: Expected, answers: Answers,
    predict: Predict | None = None,
) -> Completeness:  # fmt: skip
    """One row for each (pair, teacher, variant), in the order of the pairs; `files` by split.

    predict: speaks for training pairs that nobody was asked about.
    """
    whole = Completeness()
    calls_a_pair = len(expected.teachers) * len(expected.prompts.systems)
    with pq.ParquetWriter(path, ANNOTATION_SCHEMA, compression="zstd") as writer:
        for split, file in files.items():
            for pairs in pair_chunks(file):
                rows = _rows(split, pairs, expected, answers, whole.redacted)
                if predict is not None and split == TRAIN:
                    mark_predicted(rows, predict(pairs), calls_a_pair)
                whole.add(rows, calls_a_pair)
                writer.write_table(pa.Table.from_pylist(rows, schema=ANNOTATION_SCHEMA))
    return whole


def _rows(
    split: str, pairs: list[Pair], expected: Expected, answers: Answers, redacted: Counter[str]
) -> list[Row]:
    if expected.redact:
        masked = [redact_pair(pair) for pair in pairs]
        pairs = [pair for pair, _ in masked]
        for _, found in masked:
            redacted.update(found)
            redacted["pairs"] += bool(found)
    calls = [c for pair in pairs for c in calls_of(pair, expected.teachers, expected.prompts)]
    found_answers = answers.get([call.key for call in calls])
    rows = [_row(split, call, found_answers.get(call.key)) for call in calls]
    if expected.early_stop is not None:
        variants = len(expected.prompts.systems)
        for start in range(0, len(rows), variants):
            _mark_skipped(rows[start : start + variants], *expected.early_stop)
    return rows


def _row(split: str, call: Call, answer: Answer | None) -> Row:
    row: Row = {
        "prompt_id": call.prompt_id,
        "split": split,
        "teacher": call.teacher,
        "variant": call.variant,
        "key": call.key,
    }
    if answer is None:
        return row | {"outcome": str(Outcome.NOT_ATTEMPTED), "detail": "nothing on record"}
    row |= {
        "outcome": answer.outcome,
        "detail": answer.detail,
        "text": answer.text,
        "served_model": answer.served_model,
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
    }
    if answer.outcome != Outcome.OK:
        return row
    reading = read_answer(answer.text)
    row |= {"outcome": str(reading.outcome), "detail": reading.detail or answer.detail}
    if reading.annotation is not None:
        row["category"] = str(reading.annotation.category)
        row["magnitude"] = reading.annotation.magnitude
        row["confidence"] = reading.annotation.confidence
    return row


def mark_predicted(rows: list[Row], told: list[Row | None], calls_a_pair: int) -> None:
    """Put the prediction in the place of pairs that are not whole on record; told: by pair, None
    where teachers were asked."""
    for start, values in zip(range(0, len(rows), calls_a_pair), told, strict=True):
        pair = rows[start : start + calls_a_pair]
        if values is not None and any(row["outcome"] == Outcome.NOT_ATTEMPTED for row in pair):
            for row in pair:  # a few answers of an earlier command are no panel
                of_call = {name: row[name] for name in CALL}
                row.clear()
                row |= of_call | values | {"outcome": str(Outcome.PREDICTED)}


def _mark_skipped(rows: list[Row], eps: float, beta_of: BetaMap) -> None:
    """Mark the calls of one teacher on one pair that were not made since they could not matter."""
    missing = [row for row in rows if row["outcome"] == Outcome.NOT_ATTEMPTED]
    known = [row for row in rows if row["outcome"] != Outcome.NOT_ATTEMPTED]
    gaps = [row.get("magnitude", float("nan")) * row.get("confidence", 0.0) for row in known]
    if missing and not any(map(isnan, gaps)) and settled(gaps, len(rows), beta_of, eps):
        for row in missing:
            row |= {"outcome": str(Outcome.SKIPPED), "detail": f"moves beta by {eps:g} at most"}
