"""What a journal amounts to: settled calls, money, speed, open batch jobs.

In: the entries of a journal, streamed. Out: a `Record`, 16 bytes a settled call. Invariant: an
attempt without a result counts as paid, at its worst.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from math import nan

import numpy as np
from numpy.typing import NDArray

from sp2dpo_ray.annotate.journal import Entry
from sp2dpo_ray.core.annotation import SETTLED, Outcome, read_answer
from sp2dpo_ray.core.costs import BYTES_PER_TOKEN

PREFIX_BYTES = 16  # of a key's 32: enough that no two calls of any journal share them


def prefix(key: str) -> bytes:
    return bytes.fromhex(key[: 2 * PREFIX_BYTES])


@dataclass(slots=True)
class Spent:
    """Money and tokens of one teacher.

    usd: from usage. possibly_usd: attempts without a result, at the most that they can have cost.
    settled: results after which a call is not asked again; answers: those with token counts.
    """

    usd: float = 0.0
    possibly_usd: float = 0.0
    settled: int = 0
    answers: int = 0
    prompt_tokens: int = 0
    prompt_bytes: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0

    def add(self, other: Spent) -> None:
        for each in fields(Spent):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))

    @property
    def bytes_per_token(self) -> float:
        """Of this teacher's prompts so far, or a guess."""
        if not self.prompt_tokens:
            return BYTES_PER_TOKEN
        return self.prompt_bytes / self.prompt_tokens


@dataclass(slots=True)
class Job:
    """A batch job. id: the provider's name of it, None until it is known to exist. intents: its
    calls without a result, by intent. reserved: money that this command has set aside for it."""

    token: str
    teacher: str
    id: str | None = None
    intents: dict[str, Entry] = field(default_factory=dict)
    reserved: float = 0.0


@dataclass(slots=True)
class Record:
    """keys: sorted prefixes of the settled calls. gaps: their effective gaps, NaN where the answer
    is not valid; empty unless they were asked for. unanswered: attempts without a result, which may
    have been paid. jobs: batch jobs whose results were not taken yet, by their token."""

    keys: NDArray[np.bytes_]
    gaps: NDArray[np.float64]
    spent: dict[str, Spent] = field(default_factory=dict)
    unanswered: int = 0
    jobs: dict[str, Job] = field(default_factory=dict)

    def jobs_of(self, teacher: str) -> dict[str, Job]:
        """Open jobs of one teacher."""
        return {token: job for token, job in self.jobs.items() if job.teacher == teacher}

    def add(self, later: Record) -> None:
        """What was recorded since: its settled calls, and its money."""
        every = np.concatenate([self.keys, later.keys])
        self.keys, first = np.unique(every, return_index=True)
        if len(self.gaps) or len(later.gaps):
            self.gaps = np.concatenate([self.gaps, later.gaps])[first]
        for name, spent in later.spent.items():
            self.spent.setdefault(name, Spent()).add(spent)

    def settled(self, keys: list[str]) -> list[bool]:
        """Which of the calls are on record as settled."""
        return [place >= 0 for place in places_of(keys, self.keys)]

    @property
    def usd(self) -> float:
        """Money spent, attempts without a result counted at their worst."""
        return sum(spent.usd + spent.possibly_usd for spent in self.spent.values())


def places_of(keys: list[str], sorted_keys: NDArray[np.bytes_]) -> list[int]:
    """For each key the place of its prefix in the sorted array, -1 where it is not in it."""
    if not len(sorted_keys) or not keys:
        return [-1] * len(keys)
    wanted = np.array([prefix(key) for key in keys], dtype=sorted_keys.dtype)
    place = np.minimum(np.searchsorted(sorted_keys, wanted), len(sorted_keys) - 1)
    places: list[int] = np.where(sorted_keys[place] == wanted, place, -1).tolist()
    return places


def read_record(
    entries: Iterable[Entry], *, with_gaps: bool = False, given_up: bool = False
) -> Record:
    """One pass over a journal.

    given_up: take calls that failed for good as settled, so that this command leaves them alone.
    """
    keys, gaps = bytearray(), array("d")
    record = Record(np.empty(0, f"S{PREFIX_BYTES}"), np.empty(0))
    intents: dict[str, Entry] = {}  # attempts under way, or cut off
    early: set[str] = set()  # results that were read before their intents: files have no order
    done: set[str] = set()
    not_found: set[str] = set()  # jobs that a look at the provider did not show
    ids: dict[str, str] = {}
    for entry in entries:
        kind = entry["kind"]
        if kind == "job" and entry["job"]:
            ids[entry["token"]] = entry["job"]
        elif kind == "job_done":
            (done if entry["job"] else not_found).add(entry["token"])
        elif kind == "intent":
            if entry["id"] in early:
                early.discard(entry["id"])
            else:
                intents[entry["id"]] = entry
        elif kind == "result":
            if intents.pop(entry["id"], None) is None:
                early.add(entry["id"])
            if entry["outcome"] in SETTLED or (given_up and entry.get("non_retryable")):
                keys += prefix(entry["key"])
                if with_gaps:
                    gaps.append(gap_of(entry["outcome"], entry.get("text")))
            _add(record.spent.setdefault(entry["teacher"], Spent()), entry)
    for intent in intents.values():
        token = intent.get("job")
        if token in done or (token in not_found and token not in ids):
            continue  # the provider never took this job; one that has an id by now, it did
        worst = intent.get("worst_usd", 0.0)
        record.spent.setdefault(intent["teacher"], Spent()).possibly_usd += worst
        if token is None:
            record.unanswered += 1
        else:
            job = Job(token, intent["teacher"], ids.get(token))
            record.jobs.setdefault(token, job).intents[intent["id"]] = intent
    every = np.frombuffer(bytes(keys), dtype=f"S{PREFIX_BYTES}")
    record.keys, first = np.unique(every, return_index=True)
    if with_gaps:
        record.gaps = np.array(gaps)[first]
    return record


def gap_of(outcome: str, text: str | None) -> float:
    """The effective gap of an answer (Eq. 29), NaN where it is not a valid one."""
    read = read_answer(text or "").annotation if outcome == Outcome.OK else None
    return nan if read is None else read.magnitude * read.confidence


def _add(spent: Spent, entry: Entry) -> None:
    spent.usd += entry.get("usd", 0.0)
    spent.possibly_usd += entry.get("possibly_usd", 0.0)
    spent.settled += entry["outcome"] in SETTLED
    if usage := entry.get("usage"):
        spent.answers += 1
        spent.prompt_tokens += usage["prompt_tokens"]
        spent.completion_tokens += usage["completion_tokens"]
        spent.prompt_bytes += entry.get("prompt_bytes", 0)
        spent.seconds += entry.get("seconds", 0.0)
