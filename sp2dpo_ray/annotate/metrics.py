"""What Ray's metrics endpoint shows of annotation, counted once a batch.

Names are stable: `sp2dpo_annotation_calls_total` by teacher and outcome (what is done, and its
rate), `sp2dpo_annotation_attempts_total` by teacher and outcome (every request; `quota` is a 429),
`sp2dpo_annotation_calls_expected` and `sp2dpo_annotation_usd_total` by teacher.
"""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa
from ray.util.metrics import Counter, Gauge

from sp2dpo_ray.core.annotation import Outcome


def expect(totals: dict[str, int]) -> None:
    """How many calls each teacher has in all; said once, by the driver."""
    expected = Gauge(
        "sp2dpo_annotation_calls_expected",
        description="Calls of the whole stage, those on record among them",
        tag_keys=("teacher",),
    )
    for teacher, calls in totals.items():
        expected.set(calls, {"teacher": teacher})


class Metrics:
    def __init__(self) -> None:
        self._calls = Counter(
            "sp2dpo_annotation_calls_total",
            description="Calls to teachers, by how they ended; `reused` were on record",
            tag_keys=("teacher", "outcome"),
        )
        self._attempts = Counter(
            "sp2dpo_annotation_attempts_total",
            description="Requests to teachers, retries among them; outcome `quota` is a 429",
            tag_keys=("teacher", "outcome"),
        )
        self._usd = Counter(
            "sp2dpo_annotation_usd_total",
            description="Money spent on teachers in USD, from the usage that they report",
            tag_keys=("teacher",),
        )

    def attempts(self, teacher: str, outcomes: Mapping[Outcome, int]) -> None:
        """Add the requests that a teacher was sent since the last batch."""
        for outcome, requests in outcomes.items():
            self._attempts.inc(requests, {"teacher": teacher, "outcome": str(outcome)})

    def count(self, batch: pa.Table) -> None:
        """Add the rows of one batch (`actor.OUTPUT`)."""
        for row in batch.to_pylist():
            outcome = "reused" if row["reused"] else row["outcome"]
            self._calls.inc(row["calls"], {"teacher": row["teacher"], "outcome": outcome})
            if row["usd"]:
                self._usd.inc(row["usd"], {"teacher": row["teacher"]})
