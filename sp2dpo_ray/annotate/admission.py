"""Admission control inside an actor: what a request waits for, its start and its money.

In: a call that wants to be sent. Out: nothing, after as long a wait as the account's limits and the
run's budget ask for. Both talk to one actor for all, in few messages: a lease covers several
starts, and reservations gather while a message is under way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from ray.exceptions import RayActorError

from sp2dpo_ray.annotate.coordinator import CoordinatorClient
from sp2dpo_ray.annotate.limiter import Lease

AHEAD_S = 0.05  # the next lease is asked for so long before the last start of this one
STALE_S = 1.0  # starts that nobody used for so long are given up
WAIT_FOR_MONEY_S = 0.2


class RateLimitClient:
    """Starts of one teacher in this actor. `limiter` is a Ray actor, or None: no limit; `renew`
    finds or makes another one, since a limiter ends with the job that made it.
    """

    def __init__(self, limiter: Any | None, renew: Callable[[], Any] | None = None) -> None:
        self._limiter = limiter
        self._renew = renew
        self._lock = asyncio.Lock()
        self._waiting = 0
        self._left = 0
        self._next = 0.0
        self._interval = 0.0
        self._tokens_each = 0.0
        self._messages: set[Any] = set()

    async def acquire(self, tokens: float) -> None:
        """Wait for the next start; `tokens` is what the call is likely to use."""
        if self._limiter is None:
            return
        loop = asyncio.get_running_loop()
        known = self._tokens_each or tokens
        self._tokens_each = known + 0.05 * (tokens - known)
        self._waiting += 1
        try:
            async with self._lock:  # first come, first served
                if self._left and self._next < loop.time() - STALE_S:
                    self._left = 0
                if self._left == 0:
                    await asyncio.sleep(max(0.0, self._next - loop.time() - AHEAD_S))
                    lease = await self._lease()
                    self._left, self._interval = lease.count, lease.interval_s
                    self._next = loop.time() + lease.delay_s
                start = self._next
                self._next += self._interval
                self._left -= 1
        finally:
            self._waiting -= 1
        await asyncio.sleep(max(0.0, start - loop.time()))

    async def _lease(self) -> Lease:
        assert self._limiter is not None
        while True:
            try:
                lease: Lease = await self._limiter.lease.remote(self._waiting, self._tokens_each)
            except RayActorError:
                if self._renew is None:
                    raise
                self._limiter = await asyncio.to_thread(self._renew)
            else:
                return lease

    def refused(self, pause_s: float | None) -> None:
        """The provider refused: tell the limiter, and give up what is left of the lease."""
        self._left = 0
        if self._limiter is not None:
            self._limiter.refused.remote(pause_s)


class Reservations:
    """Reservations of this actor; `coordinator` is a Ray actor, or None: no budget."""

    def __init__(self, coordinator: Any | None) -> None:
        self._coordinator = None if coordinator is None else CoordinatorClient(coordinator)
        self._released = 0.0
        self._paid = 0.0
        self._wanted: list[tuple[float, asyncio.Future[bool]]] = []
        self._talk: asyncio.Task[None] | None = None

    async def reserve(self, worst: float) -> bool:
        """Wait until an attempt's worst cost is reserved; False if the budget has no room."""
        if self._coordinator is None or worst == 0:
            return True
        granted = asyncio.get_running_loop().create_future()
        self._wanted.append((worst, granted))
        self._speak()
        return bool(await granted)

    def settle(self, worst: float, paid: float) -> None:
        """An attempt ended: `worst` was reserved for it, `paid` is what it cost."""
        if self._coordinator is None or worst == 0:
            return
        self._released += worst
        self._paid += paid
        self._speak()

    def _speak(self) -> None:
        if self._talk is None or self._talk.done():
            self._talk = asyncio.create_task(self._exchange())

    async def _exchange(self) -> None:
        assert self._coordinator is not None
        while self._released or self._wanted:
            asked, self._wanted = self._wanted, []
            released, paid, self._released, self._paid = self._released, self._paid, 0.0, 0.0
            try:
                count, exhausted = await self._coordinator.exchange(
                    released, paid, [worst for worst, _ in asked]
                )
            except Exception as error:
                for _, granted in asked:
                    granted.set_exception(error)
                continue
            for _, granted in asked[:count]:
                granted.set_result(True)
            left = asked[count:]
            if exhausted:
                # the first of them found no room; a smaller one behind it might, so ask once more
                left.pop(0)[1].set_result(False)
            self._wanted = left + self._wanted
            if left and not exhausted:
                await asyncio.sleep(WAIT_FOR_MONEY_S)
