"""Batch mode: a teacher's calls handed in as files of requests, its answers fetched later.

In: files of pairs, what is on record, jobs that an earlier command left. Out: rows as the actors
send them; the answers go to the journal under the same keys. Invariant: a job is on record before
it is created and its id before anybody waits for it, so a killed command finds its jobs again.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt
from tenacity.wait import wait_random_exponential

from sp2dpo_ray.annotate.admission import WAIT_FOR_MONEY_S
from sp2dpo_ray.annotate.coordinator import CoordinatorClient
from sp2dpo_ray.annotate.entries import intent_entry, money_of, result_entry
from sp2dpo_ray.annotate.journal import Entry, Segment
from sp2dpo_ray.annotate.record import Job, Record
from sp2dpo_ray.annotate.spec import PanelSpec
from sp2dpo_ray.annotate.table import pair_chunks
from sp2dpo_ray.config import TeacherSection
from sp2dpo_ray.core.annotation import SETTLED, Outcome
from sp2dpo_ray.core.calls import Call
from sp2dpo_ray.errors import Sp2dpoError, TeacherStopped
from sp2dpo_ray.teachers.base import Reply, api_key, clean
from sp2dpo_ray.teachers.batch import Look, State, make_batch_api
from sp2dpo_ray.teachers.retry import LONGEST_WAIT_S

CPUS = 0.25
LINES_AT_ONCE = 1_000
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Order:
    """What one teacher in batch mode has to do. spec: the panel of this one teacher."""

    spec: PanelSpec
    files: list[Path]
    record: Record
    poll_s: float

    @property
    def teacher(self) -> TeacherSection:
        return self.spec.teachers[0]


def start_batches(order: Order, coordinator: Any) -> Any:
    """Begin to work on an order, on a node that has the keys; yields references to rows."""
    return ray.remote(num_cpus=CPUS, num_returns="streaming", max_retries=0)(_work).remote(
        order, coordinator
    )


def rows_of(stream: Any) -> Iterator[list[Row]]:
    """The rows of a started order as they come. Raises what stopped it."""
    for reference in stream:
        try:
            yield ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, Sp2dpoError):
                raise error.cause from None
            raise


def _work(order: Order, coordinator: Any) -> Iterator[list[Row]]:
    loop = asyncio.new_event_loop()
    runner = loop.run_until_complete(_made(order, coordinator))
    rounds = runner.rounds()
    try:
        while True:
            try:
                yield loop.run_until_complete(anext(rounds))
            except StopAsyncIteration:
                return
    finally:
        loop.run_until_complete(runner.close())


async def _made(order: Order, coordinator: Any) -> Runner:
    return Runner(order, coordinator)


class Runner:
    """Submits, waits, takes; again for what failed, as often as a call may be retried."""

    def __init__(self, order: Order, coordinator: Any) -> None:
        self._order = order
        self._coordinator = CoordinatorClient(coordinator)
        self._section = order.teacher
        self._decoding = order.spec.decoding
        self._api = make_batch_api(self._section, self._decoding)
        self._key = api_key(self._section)
        self._segment = Segment(order.spec.place, self._section.name)
        self._price = self._section.rate
        self._over: set[str] = set()  # calls that nobody asks again
        self._on_record = 0

    async def rounds(self) -> AsyncIterator[list[Row]]:
        """Rows of what is on record, and of each job as its results come."""
        for attempt in range(1, self._decoding.retries + 2):
            last = attempt == self._decoding.retries + 1
            jobs = await self._adopted() if attempt == 1 else []
            self._on_record = failed = 0
            for calls in self._portions(jobs):
                while (job := await self._submit(calls, attempt, wait=not jobs)) is None:
                    if not jobs:
                        yield [
                            self._row(
                                Outcome.BUDGET_STOP,
                                len(calls),
                                detail="the budget has no room for a file at its worst",
                            )
                        ]
                        return
                    # an open job counts at its worst; its end may make room
                    rows, again = await self._take(*await self._next_ended(jobs), last)
                    failed += again
                    yield rows
                jobs.append(job)
            if attempt == 1 and self._on_record:
                yield [self._row(Outcome.OK, self._on_record, reused=True)]
            while jobs:
                rows, again = await self._take(*await self._next_ended(jobs), last)
                failed += again
                yield rows
            if not failed:
                return

    async def _adopted(self) -> list[Job]:
        """The jobs of earlier commands; one without an id may have been created all the same."""
        jobs = []
        for job in self._order.record.jobs_of(self._section.name).values():
            if job.id is None:
                job.id = await self._patiently(lambda job=job: self._api.find(job.token))
                await self._note("job" if job.id else "job_done", job)
            if job.id is not None:
                jobs.append(job)
        return jobs

    async def _next_ended(self, jobs: list[Job]) -> tuple[Job, Look]:
        """The next job to end; it is taken out of `jobs`."""
        while True:
            for _ in range(len(jobs)):
                job = jobs.pop(0)
                look: Look = await self._patiently(lambda job=job: self._api.look(job.id or ""))
                if look.state is not State.RUNNING:
                    return job, look
                jobs.append(job)
            await asyncio.sleep(self._order.poll_s)

    def _portions(self, jobs: list[Job]) -> Iterator[list[Call]]:
        """The calls that neither are on record nor wait in a job, a file's worth at a time."""
        waiting = {intent["key"] for job in jobs for intent in job.intents.values()}
        portion, size = list[Call](), 0
        for call in self._calls():
            if call.key in self._over or call.key in waiting:
                continue
            length = len(self._api.line(call))
            full = len(portion) == self._api.most_requests
            if portion and (full or size + length > self._api.most_bytes):
                yield portion
                portion, size = [], 0
            portion.append(call)
            size += length
        if portion:
            yield portion

    def _calls(self) -> Iterator[Call]:
        """The calls that were not on record when the command began; the others are counted."""
        for file in self._order.files:
            for pairs in pair_chunks(file):
                calls = self._order.spec.calls(pairs)
                known = self._order.record.settled([call.key for call in calls])
                self._on_record += sum(known)
                yield from (c for c, settled in zip(calls, known, strict=True) if not settled)

    async def _submit(self, calls: list[Call], attempt: int, *, wait: bool) -> Job | None:
        """A new job, or None where the budget has no room; wait: for money that others hold."""
        cap = self._decoding.max_output_tokens
        worsts = [self._price.worst(c.messages, cap) if self._price else 0.0 for c in calls]
        if not await self._reserved(sum(worsts), wait=wait):
            return None
        job = Job(token=os.urandom(12).hex(), teacher=self._section.name)
        for call, worst in zip(calls, worsts, strict=True):
            intent = intent_entry(call, attempt, worst) | {"job": job.token}
            job.intents[intent["id"]] = intent
        await self._append(list(job.intents.values()))
        await self._note("job", job)
        content = b"".join(self._api.line(call) for call in calls)

        async def create() -> str:
            # an answer that got lost on the way must not make a second job
            return await self._api.find(job.token) or await self._api.submit(job.token, content)

        job.id = await self._patiently(create)
        await self._note("job", job)
        job.reserved = sum(worsts)
        return job

    async def _reserved(self, worst: float, *, wait: bool) -> bool:
        while worst:
            count, exhausted = await self._coordinator.exchange(0.0, 0.0, [worst])
            if count:
                break
            if exhausted or not wait:
                return False
            await asyncio.sleep(WAIT_FOR_MONEY_S)
        return True

    async def _take(self, job: Job, look: Look, last: bool) -> tuple[list[Row], int]:
        replies: dict[str, Reply] = {}
        if look.state is State.ENDED:
            replies = dict(await self._patiently(lambda: self._api.take(job.id or "")))
        counts: Counter[tuple[Outcome, bool]] = Counter()
        results, details = list[Entry](), dict[tuple[Outcome, bool], str]()
        usd = paid = failed = 0.0
        missing = Reply(Outcome.TRANSPORT, detail=look.detail or "the batch has no answer to it")
        for intent in job.intents.values():
            reply, worst = replies.get(intent["key"], missing), intent.get("worst_usd", 0.0)
            money, cost = money_of(self._price, reply, worst)
            seconds = time.time() - intent["time"]
            results.append(result_entry(intent, reply, seconds=seconds, money=money))
            usd += money.get("usd", 0.0)
            # what an earlier command reserved counts as spent since this one began
            paid += cost if job.reserved else cost - worst
            over = reply.outcome in SETTLED or reply.non_retryable
            if over:
                self._over.add(intent["key"])
            else:
                failed += 1
            if last or over:
                end = (reply.outcome, reply.non_retryable)
                counts[end] += 1
                details[end] = reply.detail
        await self._append(results)
        await self._note("job_done", job)
        await self._coordinator.exchange(job.reserved, paid, [])
        if look.state is State.FAILED:
            raise TeacherStopped(
                f"teacher {self._section.name}: batch job {job.id} failed: {look.detail}. Mend the "
                "cause, then run the same command"
            )
        rows = [
            self._row(outcome, calls, detail=details[outcome, final], final=final)
            for (outcome, final), calls in counts.items()
        ]
        if rows:
            rows[0]["usd"] = usd
        return rows, int(failed)

    async def _append(self, entries: list[Entry]) -> None:
        """All of them on record; many at once, since an object store keeps a flush as an object."""
        for start in range(0, len(entries), LINES_AT_ONCE):
            lines = entries[start : start + LINES_AT_ONCE]
            await asyncio.gather(*map(self._segment.append, lines))

    async def _note(self, kind: str, job: Job) -> None:
        entry: Entry = {"kind": kind, "token": job.token, "teacher": job.teacher, "job": job.id,
                        "calls": len(job.intents), "time": time.time()}  # fmt: skip
        await self._segment.append(entry)

    async def _patiently(self, operation: Callable[[], Awaitable[Any]]) -> Any:
        """One operation of the batch API, again where an error may pass."""

        async def once() -> Any:
            return await operation()

        try:
            return await AsyncRetrying(
                retry=retry_if_exception(lambda error: self._api.refused(error) is False),
                stop=stop_after_attempt(self._decoding.retries + 1),
                wait=wait_random_exponential(self._decoding.retry_base_s, max=LONGEST_WAIT_S),
                reraise=True,
            )(once)
        except Exception as error:
            said = clean(f"{type(error).__name__}: {error}", self._key)
            if self._api.refused(error) is None:  # a fault of the program: the trace, not the key
                raise RuntimeError(said).with_traceback(error.__traceback__) from None
            raise TeacherStopped(
                f"teacher {self._section.name}: batch: {said}\nJobs that were created are on "
                "record. Mend the cause, then run the same command"
            ) from None

    def _row(
        self, outcome: Outcome, calls: int, *, reused: bool = False, detail: str = "",
        final: bool = False,
    ) -> Row:  # fmt: skip
        return {"teacher": self._section.name, "outcome": str(outcome), "reused": reused,
                "calls": calls, "usd": 0.0, "detail": detail, "final": final}  # fmt: skip

    async def close(self) -> None:
        await self._api.close()
        self._segment.close()
