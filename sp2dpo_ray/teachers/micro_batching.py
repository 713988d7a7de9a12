"""Calls that wait together, worked on together: for teachers that are a model of our own.

In: one call at a time. Out: one reply at a time. Invariant: a call is in one batch at most,
and in none once nobody waits for it; every failure of a batch reaches each of its calls.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from sp2dpo_ray.core.calls import Call
from sp2dpo_ray.teachers.base import Reply


class MicroBatcher:
    """work: replies to so many calls, in their order; it runs on a thread, one batch at a time.
    most: calls of a batch."""

    def __init__(self, work: Callable[[list[Call]], list[Reply]], most: int) -> None:
        self._work, self._most = work, most
        self._waiting: list[tuple[Call, asyncio.Future[Reply]]] = []
        self._running: asyncio.Task[None] | None = None

    async def ask(self, call: Call) -> Reply:
        answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting.append((call, answer))
        if self._running is None:
            self._running = asyncio.create_task(self._answer_all())
        return await answer

    async def _answer_all(self) -> None:
        await asyncio.sleep(0)  # the others of this turn
        while self._waiting:  # calls come in while a batch is worked on
            # whoever gave up meanwhile, past a deadline or cancelled, needs no answer
            self._waiting = [row for row in self._waiting if not row[1].done()]
            batch, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
            if not batch:
                break
            try:
                replies = await asyncio.to_thread(self._work, [call for call, _ in batch])
            except Exception as error:
                for _, answer in batch:
                    if not answer.done():  # its caller may have stopped waiting
                        answer.set_exception(error)
            else:
                for (_, answer), reply in zip(batch, replies, strict=True):
                    if not answer.done():
                        answer.set_result(reply)
        self._running = None
