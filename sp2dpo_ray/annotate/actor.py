"""The Ray Data actor that asks the panel: concurrency on an event loop of its own.

In: a batch of pairs. Out: one row a call with its outcome. Several batches run at once on one
private loop, so that a slow consumer cannot freeze requests in flight. Invariant: `__call__` never
raises for a failed call, and an answer is in the journal before it leaves here.
"""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from sp2dpo_ray.annotate.journal import Journal, Segment
from sp2dpo_ray.config import DecodingSection, TeacherSection
from sp2dpo_ray.core.annotation import SETTLED, Outcome
from sp2dpo_ray.core.calls import Call, calls_of
from sp2dpo_ray.core.pairs import pairs_from
from sp2dpo_ray.core.prompts import PromptSet
from sp2dpo_ray.teachers.base import Reply, Teacher, identity
from sp2dpo_ray.teachers.catalogue import make_teacher
from sp2dpo_ray.teachers.retry import ask_until_settled

OUTPUT = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("teacher", pa.string()),
        ("variant", pa.string()),
        ("outcome", pa.string()),
        ("detail", pa.string()),
        ("reused", pa.bool_()),
    ]
)


@dataclass(frozen=True, slots=True)
class PanelSpec:
    """Everything an actor needs to ask the panel; travels to the actor, so it holds no key."""

    teachers: tuple[TeacherSection, ...]
    decoding: DecodingSection
    prompts: PromptSet
    journal: Path
    actors: int
    max_failures: int


@dataclass(slots=True)
class _Chair:
    """One teacher at this actor's table."""

    teacher: Teacher
    segment: Segment
    slots: asyncio.Semaphore
    failures_in_a_row: int = 0
    halted: str = ""


class PanelActor:
    """Callable class for `map_batches`; thread-safe, since all work happens on its loop."""

    def __init__(self, spec: PanelSpec) -> None:
        self._spec = spec
        self._identities = tuple(identity(teacher, spec.decoding) for teacher in spec.teachers)
        self._journal = Journal(spec.journal)
        self._settled: set[bytes] = set()
        self._under_way: dict[str, asyncio.Future[Reply]] = {}
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._chairs = asyncio.run_coroutine_threadsafe(self._seat(), self._loop).result()

    def __call__(self, batch: pa.Table) -> pa.Table:
        return asyncio.run_coroutine_threadsafe(self._annotate(batch), self._loop).result()

    async def _seat(self) -> dict[str, _Chair]:
        return {
            teacher.name: _Chair(
                make_teacher(teacher, self._spec.decoding),
                Segment(self._spec.journal / teacher.name),
                asyncio.Semaphore(max(1, teacher.limits.in_flight // self._spec.actors)),
            )
            for teacher in self._spec.teachers
        }

    async def _annotate(self, batch: pa.Table) -> pa.Table:
        # Ray may give a lost actor's batch to this one: look at what others recorded meanwhile
        self._settled |= self._journal.settled_keys()
        calls = [
            call
            for pair in pairs_from(batch)
            for call in calls_of(pair, self._identities, self._spec.prompts)
        ]
        rows = await asyncio.gather(*(self._settle(call) for call in calls))
        return pa.Table.from_pylist(rows, schema=OUTPUT)

    async def _settle(self, call: Call) -> dict[str, object]:
        row = {"prompt_id": call.prompt_id, "teacher": call.teacher, "variant": call.variant}
        if bytes.fromhex(call.key) in self._settled:
            return row | {"outcome": str(Outcome.OK), "detail": "", "reused": True}
        # the same texts may stand under another id: one call serves both
        twin = self._under_way.get(call.key)
        reused = twin is not None
        if twin is None:
            twin = self._under_way[call.key] = asyncio.ensure_future(self._ask(call))
            twin.add_done_callback(lambda _: self._under_way.pop(call.key, None))
        reply = await twin
        return row | {"outcome": str(reply.outcome), "detail": reply.detail, "reused": reused}

    async def _ask(self, call: Call) -> Reply:
        chair = self._chairs[call.teacher]
        async with chair.slots:
            if chair.halted:
                return Reply(Outcome.NOT_ATTEMPTED, detail=chair.halted)
            try:
                reply = await ask_until_settled(
                    chair.teacher, call, self._spec.decoding, chair.segment.record
                )
            except Exception as error:  # a fault of ours or the disk's: stop, lose no sibling
                chair.halted = f"{type(error).__name__}: {error}"
                return Reply(Outcome.NOT_ATTEMPTED, detail=chair.halted)
        if reply.outcome in SETTLED:
            chair.failures_in_a_row = 0
            self._settled.add(bytes.fromhex(call.key))
            return reply
        chair.failures_in_a_row += 1
        if reply.outcome is Outcome.AUTH:
            chair.halted = reply.detail
        elif chair.failures_in_a_row >= self._spec.max_failures:
            chair.halted = f"{chair.failures_in_a_row} calls in a row failed, last: {reply.detail}"
        return reply
