"""Before the flood: every teacher is made, and asked once, where calls are made.

In: the panel and a few pairs. Out: nothing, or an error that says what to mend. The one call is an
expected one and goes on record, so it costs nothing extra. Invariant: a wrong key, a retired model,
a refused option or a cap that leaves no room for an answer costs one call, not a run.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import ray

from sp2dpo_ray.annotate.client import make_clients
from sp2dpo_ray.annotate.journal import Journal
from sp2dpo_ray.annotate.record import Record, read_record
from sp2dpo_ray.annotate.spec import PanelSpec
from sp2dpo_ray.config import TeacherSection
from sp2dpo_ray.core.annotation import Outcome
from sp2dpo_ray.core.calls import Call
from sp2dpo_ray.core.pairs import Pair
from sp2dpo_ray.errors import ConfigError, Sp2dpoError, Stopped, TeacherStopped
from sp2dpo_ray.teachers.base import Reply

CPUS = 0.25
TRIES = 3
LOST = (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError,
        ray.exceptions.OutOfMemoryError, ray.exceptions.LocalRayletDiedError)  # fmt: skip


class NoRoom(Stopped):
    """The budget has no room for a teacher's first call."""


def preflight(
    spec: PanelSpec, pairs: list[Pair], record: Record, coordinator: Any
) -> dict[str, Reply]:
    """Ask each API teacher its first call that is neither on record nor in an open batch job;
    replies by teacher.

    Raises ConfigError for a missing key, package or option and for a cap that is too small,
    TeacherStopped for a teacher that refuses, NoRoom where the money does not last. Keys lie on
    the machines that call, so asking the driver would be asking the wrong one.
    """
    for left in reversed(range(TRIES)):
        calls = _first_calls(spec, pairs, record)
        try:
            replies = _asked(spec, calls, coordinator)
            break
        except LOST as error:
            if not left:
                raise Stopped(
                    f"preflight: its worker was lost {TRIES} times, last: {error}. Look at the "
                    "nodes, then run the same command"
                ) from None
            # the worker may have recorded an answer before it went
            record = read_record(Journal(spec.place).new_entries())
    for teacher in spec.teachers:
        if teacher.name in replies:
            judge(teacher, replies[teacher.name], spec.decoding.max_output_tokens)
    return replies


def _asked(spec: PanelSpec, calls: dict[str, Call], coordinator: Any) -> dict[str, Reply]:
    # without Ray's retries: these would ask again what is on record
    task = ray.remote(num_cpus=CPUS, max_retries=0)(_ask_once)
    try:
        replies: dict[str, Reply] = ray.get(task.remote(spec, calls, coordinator))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, Sp2dpoError):
            raise error.cause from None
        raise
    return replies


def _first_calls(spec: PanelSpec, pairs: list[Pair], record: Record) -> dict[str, Call]:
    external = {teacher.name for teacher in spec.teachers if teacher.external}
    batch = {teacher.name for teacher in spec.teachers if teacher.mode == "batch"}
    jobs = (job for job in record.jobs.values() if job.teacher in batch)
    # the answer to these is on its way
    waiting = {intent["key"] for job in jobs for intent in job.intents.values()}
    first: dict[str, Call] = {}
    for pair in pairs:
        calls = spec.calls([pair])
        for call, settled in zip(calls, record.settled([c.key for c in calls]), strict=True):
            if not settled and call.teacher in external and call.key not in waiting:
                first.setdefault(call.teacher, call)
        if first.keys() == external:
            break
    return first


def _ask_once(spec: PanelSpec, calls: dict[str, Call], coordinator: Any) -> dict[str, Reply]:
    async def ask() -> dict[str, Reply]:
        # one call of a teacher in batch mode, too, goes out at once, at the full price
        asked = (t for t in spec.teachers if not t.on_engine)
        teachers = tuple(t.model_copy(update={"mode": "interactive"}) for t in asked)
        clients = await make_clients(replace(spec, teachers=teachers), coordinator)
        try:
            replies = await asyncio.gather(*(clients[name].ask(calls[name]) for name in calls))
        finally:
            await asyncio.gather(*(client.close() for client in clients.values()))
        return dict(zip(calls, replies, strict=True))

    return asyncio.run(ask())


def judge(teacher: TeacherSection, reply: Reply, cap: int) -> None:
    """Raise what one reply says about all that would follow."""
    name = teacher.name
    if reply.outcome in (Outcome.AUTH, Outcome.NOT_ATTEMPTED):
        raise TeacherStopped(
            f"teacher {name}: {reply.detail}\nOne call was tried, none was answered. Look at "
            f"{_said_of(teacher)}; then run the same command"
        )
    if reply.outcome is Outcome.BUDGET_STOP:
        raise NoRoom(f"budget.usd has no room for the first call of teacher {name}. Raise it")
    reasoning = reply.usage.reasoning_tokens if reply.usage else 0
    if reply.outcome is Outcome.TRUNCATED and not (reply.text or "").strip():
        spent = f" ({reasoning} of them on reasoning)" if reasoning else ""
        raise ConfigError(
            f"teacher {name}: decoding.max_output_tokens ({cap}) ran out before the answer began"
            f"{spent}. Let the model reason less (teachers.{name}.options: reasoning_effort: "
            "minimal for OpenAI, thinking_budget: 0 for Gemini, enable_thinking: false for "
            "DashScope), or raise decoding.max_output_tokens"
        )


def _said_of(teacher: TeacherSection) -> str:
    """What of a configuration decides whether a teacher answers; the key by its variable."""
    said = [f"model {teacher.model}"]
    if teacher.api_key_env:
        said.insert(0, f"the key in {teacher.api_key_env}")
    if teacher.base_url:
        said.append(f"base_url {teacher.base_url}")
    if teacher.options:
        said.append(f"options {sorted(teacher.options)}")
    return ", ".join(said)
