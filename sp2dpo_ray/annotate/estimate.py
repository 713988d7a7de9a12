"""What a panel would still ask, and what that costs: calls, tokens, money, hours.

In: files of pairs, the panel, what is on record. Out: a figure each, by teacher. Invariant: nothing
is asked. Tokens are a guess (four bytes of text each) until a teacher's answers have told its
ratio.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from sp2dpo_ray.annotate.record import Record, Spent
from sp2dpo_ray.annotate.spec import PanelSpec
from sp2dpo_ray.annotate.table import pair_chunks
from sp2dpo_ray.config import TeacherSection
from sp2dpo_ray.core.calls import Call
from sp2dpo_ray.core.costs import Usage, likely_prompt_tokens

ANSWER_TOKENS = 40  # of a JSON answer, until this teacher's answers have told
SECONDS = 1.5  # of an answer, until then
BATCH_HOURS = 24.0  # what providers promise for a batch


@dataclass(slots=True)
class CostEstimate:
    """calls: of the whole panel; recorded: those on record; the rest is about what is missing.

    cost_usd: None where the price is not known. hours: at the teacher's limits.
    """

    calls: int = 0
    calls_recorded: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float | None = 0.0
    spent_usd: float = 0.0
    hours: float = 0.0


def estimate_costs(files: list[Path], spec: PanelSpec, record: Record) -> dict[str, CostEstimate]:
    """The outlook of each teacher."""
    outlooks = {teacher.name: CostEstimate() for teacher in spec.teachers}
    known = {name: record.spent.get(name, Spent()) for name in outlooks}
    for calls in _chunks(files, spec):
        settled = record.settled([call.key for call in calls])
        for call, done in zip(calls, settled, strict=True):
            outlook = outlooks[call.teacher]
            outlook.calls += 1
            outlook.calls_recorded += done
            if not done:
                ratio = known[call.teacher].bytes_per_token
                outlook.prompt_tokens += likely_prompt_tokens(call.messages, ratio)
    for teacher in spec.teachers:
        _finish(outlooks[teacher.name], teacher, known[teacher.name])
    return outlooks


def _chunks(files: list[Path], spec: PanelSpec) -> Iterator[list[Call]]:
    for file in files:
        for pairs in pair_chunks(file):
            yield spec.calls(pairs)


def _finish(outlook: CostEstimate, teacher: TeacherSection, known: Spent) -> None:
    missing = outlook.calls - outlook.calls_recorded
    each = known.completion_tokens / known.answers if known.answers else ANSWER_TOKENS
    outlook.completion_tokens = round(missing * each)
    outlook.spent_usd = known.usd + known.possibly_usd
    usage = Usage(outlook.prompt_tokens, outlook.completion_tokens)
    price = teacher.rate
    free = not teacher.external
    outlook.cost_usd = price.cost(usage) if price else (0.0 if free else None)
    if free or not missing:
        return
    if teacher.mode == "batch":
        outlook.hours = BATCH_HOURS
        return
    limits = teacher.limits
    seconds = known.seconds / known.answers if known.answers else SECONDS
    minutes = [missing * seconds / limits.in_flight / 60]
    if limits.rpm:
        minutes.append(missing / limits.rpm)
    if limits.tpm:
        minutes.append(usage.total / limits.tpm)
    outlook.hours = max(minutes) / 60


def total(outlooks: dict[str, CostEstimate]) -> dict[str, float | int | None]:
    """Over all teachers: sums, and the hours of the slowest, since they work side by side."""
    rows = [asdict(outlook) for outlook in outlooks.values()]
    costs = [row["cost_usd"] for row in rows]
    return {
        "calls": sum(row["calls"] for row in rows),
        "calls_recorded": sum(row["calls_recorded"] for row in rows),
        "prompt_tokens": sum(row["prompt_tokens"] for row in rows),
        "completion_tokens": sum(row["completion_tokens"] for row in rows),
        "cost_usd": None if None in costs else sum(costs),
        "spent_usd": sum(row["spent_usd"] for row in rows),
        "hours": max(row["hours"] for row in rows),
    }
