"""Asking a judge: the calls of a benchmark through journal, limiter and budget.

In: questions as messages, a judge. Out: the answer to each, raw body included. Invariant: an answer
that is on record is never asked again, and what failed is among the answers with its outcome, never
dropped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sp2dpo_ray.annotate.client import client_of
from sp2dpo_ray.annotate.coordinator import start_coordinator
from sp2dpo_ray.annotate.journal import Entry, Journal
from sp2dpo_ray.annotate.record import read_record
from sp2dpo_ray.config import DecodingSection, TeacherSection
from sp2dpo_ray.core.annotation import SETTLED, Outcome
from sp2dpo_ray.core.calls import Call
from sp2dpo_ray.core.hashing import sha256_hex
from sp2dpo_ray.core.pairs import Pair
from sp2dpo_ray.core.place import Place
from sp2dpo_ray.core.prompts import Message
from sp2dpo_ray.errors import Stopped, TeacherStopped
from sp2dpo_ray.teachers.base import Reply, identity

PROTOCOL_VERSION = 1
ENDED = frozenset({Outcome.AUTH, Outcome.NOT_ATTEMPTED, Outcome.BUDGET_STOP})


@dataclass(frozen=True, slots=True)
class Judge:
    """Who judges, how it is asked, and where its answers are kept.

    budget: most money in USD that the journal may ever have cost.
    """

    section: TeacherSection
    decoding: DecodingSection
    place: Place
    budget: float | None = None
    max_failures: int = 25
    max_pause_s: float = 3600.0

    def key(self, messages: list[Message]) -> str:
        """SHA-256 of everything that can change the answer."""
        told = identity(self.section, self.decoding)
        return sha256_hex(
            ["judge", PROTOCOL_VERSION, told.provider, told.model, messages, told.decoding]
        )


@dataclass(frozen=True, slots=True)
class Question:
    """item: of the benchmark, for people. kind: which of its calls this is."""

    item: str
    kind: str
    messages: list[Message]


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a call to the judge ended. text and raw: '' where nothing came back. usd: what it cost,
    by the judge's usage."""

    outcome: str
    text: str = ""
    raw: str = ""
    detail: str = ""
    served_model: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float = 0.0

    @property
    def answered(self) -> bool:
        """Whether there is a text or a token to read: a cap of one token cuts every answer."""
        return self.outcome in (Outcome.OK, Outcome.TRUNCATED)


def ask(
    judge: Judge,
    questions: Sequence[Question],
    *,
    offline: bool = False,
    announce: Callable[[int, float | None], None] = lambda calls, usd: None,
    advance: Callable[[int, str], None] = lambda steps, note: None,
) -> tuple[list[Verdict], int, float]:
    """The verdict on each question, in their order, how many calls were made for them, and what
    these cost, in USD.

    offline: ask nothing; what is not on record is a verdict `not_attempted`. announce: is told
    before the first call how many there will be and what they cost at most, in USD, None where no
    price is known. Raises TeacherStopped
    when the judge refuses us or keeps failing, Stopped when the budget is used up.
    """
    journal = Journal(judge.place, judge.section.name)
    known, spent = _recorded(journal)
    keys = [judge.key(question.messages) for question in questions]
    todo = {k: q for k, q in zip(keys, questions, strict=True) if k not in known}
    advance(len(keys) - len(todo), "on record")
    if todo and not offline:
        announce(len(todo), worst_of(judge, list(todo.values())))
        coordinator = start_coordinator(
            judge.place, judge.budget, spent, judge.decoding.timeout_s + 60
        )
        asyncio.run(_ask_all(judge, todo, coordinator, advance))
        later, _ = _recorded(Journal(judge.place, judge.section.name))
        known |= later
    missing = Verdict(str(Outcome.NOT_ATTEMPTED), detail="nothing on record")
    new = [] if offline else [known[key] for key in todo if key in known]
    return [known.get(key, missing) for key in keys], len(new), sum(v.usd for v in new)


def worst_of(judge: Judge, questions: Sequence[Question]) -> float | None:
    """What these calls cost at most, in USD: Eq. 60 with a judge in the annotators' place, every
    prompt at a token a byte and every answer as long as it may be; None without a price."""
    price = judge.section.rate
    if price is None:
        return None
    cap = judge.decoding.max_output_tokens
    return sum(price.worst(question.messages, cap) for question in questions)


def _recorded(journal: Journal) -> tuple[dict[str, Verdict], float]:
    """Settled verdicts by key, the first of each, and the money that the journal holds."""
    entries = list(journal.new_entries())
    results = sorted((e for e in entries if e["kind"] == "result"), key=lambda e: e["time"])
    found: dict[str, Verdict] = {}
    for entry in results:
        if entry["outcome"] in SETTLED:
            found.setdefault(entry["key"], _verdict(entry))
    return found, read_record(entries).usd


def _verdict(entry: Entry) -> Verdict:
    usage = entry.get("usage") or {}
    return Verdict(
        entry["outcome"], entry.get("text") or "", entry.get("raw") or "", entry.get("detail", ""),
        entry.get("served_model"), usage.get("prompt_tokens") or 0,
        usage.get("completion_tokens") or 0, entry.get("usd", 0.0),
    )  # fmt: skip


async def _ask_all(
    judge: Judge, todo: dict[str, Question], coordinator: Any, advance: Callable[[int, str], None]
) -> None:
    section = judge.section
    client = client_of(
        section, judge.decoding, judge.place, coordinator, in_flight=section.limits.in_flight,
        max_failures=judge.max_failures, max_pause_s=judge.max_pause_s,
    )  # fmt: skip
    calls = [
        Call(key, q.item, section.name, q.kind, Pair(q.item, [], "", ""), q.messages)
        for key, q in todo.items()
    ]
    try:
        # the first alone: a wrong key or a cap without room costs one call, not as many as fit
        _stop_for(await client.ask(calls[0]), section.name)
        advance(1, "")
        stop: Stopped | None = None
        for reply in asyncio.as_completed([client.ask(call) for call in calls[1:]]):
            try:
                _stop_for(await reply, section.name)
            except Stopped as error:  # what is under way is paid: it is awaited, and recorded
                stop = stop or error
                client.halt(str(error))
            else:
                advance(1, f"${client.usd:,.2f}" if client.usd else "")
        if stop is not None:
            raise stop
    finally:
        await client.close()


def _stop_for(reply: Reply, name: str) -> None:
    go_on = "What was answered is recorded and will not be asked again; run the same command"
    if reply.outcome is Outcome.BUDGET_STOP:
        raise Stopped(f"evaluate.budget_usd has no room for another call of judge {name}. {go_on}")
    if reply.outcome in ENDED:
        raise TeacherStopped(f"judge {name}: {reply.detail}\nMend the cause. {go_on}")


def outcomes_of(verdicts: Iterable[Verdict]) -> dict[str, int]:
    """How many calls ended how."""
    counts: dict[str, int] = {}
    for verdict in verdicts:
        counts[verdict.outcome] = counts.get(verdict.outcome, 0) + 1
    return dict(sorted(counts.items()))
