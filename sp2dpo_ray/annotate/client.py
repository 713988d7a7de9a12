"""One teacher as an actor asks it: attempts, each with its start, its money and its record.

In: a call. Out: its last reply. Invariant: an intent is on record before the request, and the
result before anybody uses it; whatever goes wrong with one call stays with that call.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import suppress
from typing import Any

from sp2dpo_ray.annotate.admission import RateLimitClient, Reservations
from sp2dpo_ray.annotate.entries import intent_entry, money_of, result_entry
from sp2dpo_ray.annotate.journal import Segment
from sp2dpo_ray.annotate.limiter import limiter_of
from sp2dpo_ray.annotate.spec import PanelSpec
from sp2dpo_ray.config import DecodingSection, TeacherSection
from sp2dpo_ray.core.annotation import SETTLED, Outcome
from sp2dpo_ray.core.calls import Call
from sp2dpo_ray.core.costs import BYTES_PER_TOKEN, text_bytes
from sp2dpo_ray.core.place import Place
from sp2dpo_ray.teachers.base import Reply, Teacher, api_key, clean
from sp2dpo_ray.teachers.catalogue import make_teacher
from sp2dpo_ray.teachers.retry import RETRYABLE, ask_until_settled


class TeacherClient:
    """halted: why this teacher is not asked any more; empty while it is."""

    def __init__(
        self,
        section: TeacherSection,
        decoding: DecodingSection,
        teacher: Teacher,
        segment: Segment,
        rate_limit: RateLimitClient,
        reservations: Reservations,
        *,
        in_flight: int,
        max_failures: int,
        max_pause_s: float,
    ) -> None:
        self._decoding = decoding
        self._teacher = teacher
        self._segment = segment
        self._rate_limit = rate_limit
        self._reservations = reservations
        self._price = section.rate
        self._key = api_key(section) if section.external else None
        self._slots = asyncio.Semaphore(in_flight)
        self._max_failures = max_failures
        self._max_pause_s = max_pause_s
        self._failed_attempts = 0
        self._bytes_per_token = BYTES_PER_TOKEN
        self._answer_tokens = float(decoding.max_output_tokens)
        self.halted = ""
        self._halt = asyncio.Event()
        self.usd = 0.0
        self.attempts: Counter[Outcome] = Counter()  # requests by how they ended

    async def ask(self, call: Call) -> Reply:
        """One call with its retries; never raises for what a provider did."""
        if self.halted:
            return Reply(Outcome.NOT_ATTEMPTED, detail=self.halted)
        reply = await ask_until_settled(
            lambda number: self._attempt(call, number), self._decoding, self._sleep
        )
        if reply.outcome is Outcome.AUTH:
            self.halt(reply.detail)
        elif reply.outcome is Outcome.QUOTA:
            self._count_failure(reply, self._decoding.retries + 1)
        return reply

    def halt(self, why: str) -> None:
        """Begin no more attempts; those under way go on to their end."""
        self.halted = self.halted or why or "refused without a word"
        self._halt.set()

    def _count_failure(self, reply: Reply, attempts: int) -> None:
        """The circuit breaker: as many attempts in a row as max_failures calls may have. Attempts
        are counted, not calls, since all calls under way may be waiting for their retries."""
        self._failed_attempts += attempts
        if self._failed_attempts >= self._max_failures * (self._decoding.retries + 1):
            self.halt(
                f"{self._failed_attempts} attempts in a row failed (annotate.max_failures "
                f"{self._max_failures} x {self._decoding.retries + 1} attempts), last: "
                f"{reply.detail}"
            )

    async def _attempt(self, call: Call, number: int) -> Reply:
        size = text_bytes(call.messages)
        async with self._slots:
            if self.halted:  # no turn is taken for nothing
                return Reply(Outcome.NOT_ATTEMPTED, detail=self.halted)
            await self._turn(size / self._bytes_per_token + self._answer_tokens)
            if self.halted:
                return Reply(Outcome.NOT_ATTEMPTED, detail=self.halted)
            worst = 0.0
            if self._price is not None:
                worst = self._price.worst(call.messages, self._decoding.max_output_tokens)
            if not await self._reservations.reserve(worst):
                return Reply(Outcome.BUDGET_STOP, detail="the budget has no room for this call")
            intent = intent_entry(call, number, worst)
            paid = worst
            try:
                await self._segment.append(intent)
                start = time.perf_counter()
                reply = await self._request(call)
                seconds = time.perf_counter() - start
                money, paid = money_of(self._price, reply, worst)
                self.usd += money.get("usd", 0.0)
                entry = result_entry(intent, reply, seconds=seconds, money=money)
                await self._segment.append(entry)
            except OSError as error:  # the journal cannot be written: stop before more is paid
                self.halt(f"journal: {type(error).__name__}: {error}")
                return Reply(Outcome.NOT_ATTEMPTED, detail=self.halted)
            finally:
                self._reservations.settle(worst, paid)
        self._learn(reply, size)
        return reply

    async def _turn(self, tokens: float) -> None:
        """Wait for a start, or for the teacher's halt: a start may be an hour away."""
        waits = [asyncio.ensure_future(self._rate_limit.acquire(tokens)),
                 asyncio.ensure_future(self._halt.wait())]  # fmt: skip
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if waits[0].done():
                waits[0].result()
        finally:
            for wait in waits:
                wait.cancel()

    async def _sleep(self, seconds: float) -> None:
        """Between two attempts; a halt ends it."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._halt.wait(), seconds)

    async def _request(self, call: Call) -> Reply:
        """One request under one deadline: SDK timeouts are for each read, and a body that trickles
        would never end."""
        try:
            async with asyncio.timeout(self._decoding.timeout_s):
                return await self._teacher.ask(call)
        except TimeoutError:
            detail = f"no whole answer within {self._decoding.timeout_s:g} s"
            return Reply(Outcome.TRANSPORT, detail=detail, maybe_billed=True)
        except Exception as error:  # one poisonous pair must not stop the others
            detail = clean(f"{type(error).__name__}: {error}", self._key)
            return Reply(Outcome.TRANSPORT, detail=detail, non_retryable=True, maybe_billed=True)

    def _learn(self, reply: Reply, size: int) -> None:
        self.attempts[reply.outcome] += 1
        pause = reply.retry_after_s
        if reply.outcome in RETRYABLE and pause is not None and pause > self._max_pause_s:
            self.halt(  # the limiter is not told: it lives on, and others would wait so long
                f"asks for a pause of {pause:,.0f} s, longer than annotate.max_pause_s "
                f"({self._max_pause_s:,.0f} s): {reply.detail}"
            )
        elif reply.outcome is Outcome.QUOTA or (reply.outcome is Outcome.TRANSPORT and pause):
            self._rate_limit.refused(pause)
        if reply.outcome is Outcome.TRANSPORT:
            self._count_failure(reply, self._decoding.retries + 1 if reply.non_retryable else 1)
        elif reply.outcome in SETTLED:
            self._failed_attempts = 0
        if reply.usage is not None and reply.usage.prompt_tokens:
            ratio = size / reply.usage.prompt_tokens
            self._bytes_per_token += 0.02 * (ratio - self._bytes_per_token)
            self._answer_tokens += 0.02 * (reply.usage.completion_tokens - self._answer_tokens)

    async def close(self) -> None:
        await self._teacher.close()
        self._segment.close()


async def make_clients(spec: PanelSpec, coordinator: Any) -> dict[str, TeacherClient]:
    """A client for every teacher of the panel; the calling loop is theirs from then on."""
    return {
        section.name: client_of(
            section, spec.decoding, spec.place, coordinator,
            in_flight=max(1, section.limits.in_flight // spec.actors),
            max_failures=spec.max_failures, max_pause_s=spec.max_pause_s,
        )
        for section in spec.teachers
    }  # fmt: skip


def client_of(
    section: TeacherSection,
    decoding: DecodingSection,
    place: Place,
    coordinator: Any,
    *,
    in_flight: int,
    max_failures: int,
    max_pause_s: float,
) -> TeacherClient:
    """A client of a model, with its limiter, its reservations and a segment of the journal at
    `place`."""
    return TeacherClient(
        section,
        decoding,
        make_teacher(section, decoding),
        Segment(place, section.name),
        RateLimitClient(limiter_of(section), lambda: limiter_of(section, replaces=True)),
        Reservations(coordinator if section.price.known else None),
        in_flight=in_flight,
        max_failures=max_failures,
        max_pause_s=max_pause_s,
    )
