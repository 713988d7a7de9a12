"""Limits and money without a clock: pace, leases over several actors, the budget's promise."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sp2dpo_ray.annotate.admission import RateLimitClient, Reservations
from sp2dpo_ray.annotate.coordinator import Budget
from sp2dpo_ray.annotate.limiter import Lease, Pace


def starts(pace: Pace, now: float, wanted: int, tokens: float = 1.0) -> list[float]:
    lease = pace.lease(wanted, tokens, now)
    return [now + lease.delay_s + n * lease.interval_s for n in range(lease.count)]


def greedy(pace: Pace, until: float, actors: int, tokens: float = 1.0) -> list[float]:
    """When requests start if every actor always wants more, and asks again as a lease ends."""
    free = dict.fromkeys(range(actors), 0.0)
    found: list[float] = []
    while True:
        actor = min(free, key=lambda name: free[name])
        if (now := free[actor]) >= until:
            return sorted(start for start in found if start < until)
        lease = starts(pace, now, 64, tokens)
        found += lease
        free[actor] = max(lease[-1], now + 1e-6)


@pytest.mark.parametrize("rpm", [30, 600, 6_000, 30_000])
@pytest.mark.parametrize("actors", [1, 2, 16])
def test_starts_are_even_and_add_up_to_the_limit(rpm: int, actors: int) -> None:
    found = greedy(Pace(rpm, None, 0.0), 120.0, actors)
    assert 0.95 * rpm <= len(found) / 2 <= rpm
    assert found[0] == 0.0
    gaps = [later - sooner for sooner, later in itertools.pairwise(found)]
    assert min(gaps) >= 60 / rpm  # no two starts closer than the limit allows, over all actors


def test_tokens_bind_where_they_are_the_narrower_limit() -> None:
    found = greedy(Pace(6_000, 60_000, 0.0), 60.0, 2, tokens=100.0)
    assert 0.95 * 600 <= len(found) <= 600


def test_a_refusal_slows_down_pauses_and_is_forgiven() -> None:
    pace = Pace(600, None, 0.0)
    assert pace.rate == pytest.approx(9.8)
    greedy(pace, 5.0, 1)
    pace.refused(30.0, 5.0)
    slower = pace.rate
    assert slower <= 0.97 * 9.8
    for late in (5.1, 5.2, 5.9):  # answers to requests that were under way slow down no further
        pace.refused(None, late)
    assert pace.rate >= slower
    assert starts(pace, 6.0, 1)[0] >= 35.0  # the pause holds for all
    pace.lease(1, 1.0, 60.0)
    assert pace.rate == pytest.approx(9.8)


def test_without_a_known_limit_it_finds_one() -> None:
    """A server that grants 10 a second: the client learns it, and stays near it."""
    pace, draw = Pace(None, None, 0.0), random.Random(0)
    now = free_at = 0.0
    granted = refused = 0
    while now < 120.0:
        lease = pace.lease(64, 1.0, now)
        now += lease.delay_s
        for _ in range(lease.count):
            now += lease.interval_s + draw.uniform(0, 1e-4)
            free_at = max(free_at, now)
            if free_at - now > 0.9:  # one second's worth at once
                refused += 1
                pace.refused(None, now)
            else:
                free_at += 0.1
                granted += 1
        now += 1e-3
    assert granted >= 0.95 * 1200
    assert refused < 0.15 * granted


def test_a_few_refusals_for_other_reasons_cost_little() -> None:
    """Three in a hundred, at random, at a rate that is granted: an overloaded provider."""
    pace, draw = Pace(6_000, None, 0.0), random.Random(0)
    now, sent = 0.0, 0
    while now < 60.0:
        lease = pace.lease(64, 1.0, now)
        sent += lease.count
        now += lease.delay_s + lease.count * lease.interval_s
        for _ in range(lease.count):
            if draw.random() < 0.03:
                pace.refused(None, now)
    assert sent >= 0.85 * 6_000


@pytest.mark.parametrize("rpm", [None, 600])
def test_a_day_without_a_call_is_survived(rpm: int | None) -> None:
    pace = Pace(rpm, None, 0.0)
    pace.lease(64, 1.0, 0.0)
    pace.refused(None, 1.0)
    lease = pace.lease(1, 1.0, 86_400.0)
    assert (lease.count, lease.delay_s) == (1, 0.0)


def test_a_restart_does_not_burst() -> None:
    pace = Pace(600, None, 100.0, restarted=True)
    assert starts(pace, 100.0, 1)[0] >= 102.0


@dataclass
class Remote:
    """Something with a method that a Ray actor would have."""

    function: Any

    async def remote(self, *arguments: Any) -> Any:
        await asyncio.sleep(0.001)
        return self.function(*arguments)


class FakeLimiter:
    def __init__(self, pace: Pace) -> None:
        self.loop = asyncio.get_running_loop()
        self.pace = pace
        self.leases: list[Lease] = []
        self.lease = Remote(self._lease)

    def _lease(self, wanted: int, tokens: float) -> Lease:
        self.leases.append(self.pace.lease(wanted, tokens, self.loop.time()))
        return self.leases[-1]


def test_two_gates_share_one_limit_in_few_messages() -> None:
    async def run() -> tuple[list[float], int]:
        loop = asyncio.get_running_loop()
        limiter = FakeLimiter(Pace(12_000, None, loop.time()))
        gates = [RateLimitClient(limiter), RateLimitClient(limiter)]
        times: list[float] = []

        async def call(gate: RateLimitClient) -> None:
            await gate.acquire(100.0)
            times.append(loop.time())

        await asyncio.gather(*(call(gates[n % 2]) for n in range(400)))
        return times, len(limiter.leases)

    times, messages = asyncio.run(run())
    assert messages < 30
    # 400 starts at 196 a second take two seconds, whatever the machine; a stall only adds to it
    assert times[-1] - times[0] >= 1.9


amounts = st.lists(st.floats(0.01, 5.0), min_size=1, max_size=30)


@given(cap=st.floats(1.0, 50.0), spent=st.floats(0, 20.0), wanted=amounts, data=st.data())
def test_the_cap_is_never_passed(cap: float, spent: float, wanted: list[float], data: Any) -> None:
    """Whatever is asked in whatever order, and whatever the attempts turn out to cost."""
    budget = Budget(cap, spent)
    flying: list[float] = []
    queue = list(wanted)
    while queue:
        count, non_retryable = budget.reserve(queue)
        flying += queue[:count]
        queue = queue[count:]
        assert budget.spent + sum(flying) <= max(cap, spent) + 1e-9
        if non_retryable:
            assert budget.spent + queue[0] > cap  # not even alone
            queue.pop(0)
        elif queue:
            assert flying  # waiting makes sense: something will come back
            worst = flying.pop()
            budget.settle(worst, data.draw(st.floats(0, worst)))


def test_what_ray_repeats_after_a_lost_answer_counts_once() -> None:
    """The coordinator died after writing its state: the same exchange comes again."""
    budget = Budget(1.0, 0.0)
    assert budget.exchange("a", 1, 0.0, 0.0, [0.3, 0.3]) == (2, False)
    assert budget.exchange("b", 1, 0.0, 0.0, [0.4]) == (1, False)
    assert budget.exchange("a", 2, 0.3, 0.1, [0.3]) == (0, False)
    for _ in range(2):  # again, and again by the one that was restarted
        before = (budget.spent, budget.reserved)
        budget = Budget.restored(1.0, json.loads(json.dumps(budget.state)))
        assert budget.exchange("a", 2, 0.3, 0.1, [0.3]) == (0, False)
        assert budget.exchange("b", 1, 0.0, 0.0, [0.4]) == (1, False)
        assert (budget.spent, budget.reserved) == before
    assert budget.exchange("a", 3, 0.3, 0.1, []) == (0, False)
    assert budget.spent + budget.reserved == pytest.approx(0.1 + 0.1 + 0.4)


@dataclass
class FakeCoordinator:
    budget: Budget
    messages: int = 0
    most: float = 0.0
    exchange: Any = field(init=False)

    def __post_init__(self) -> None:
        self.exchange = Remote(self._exchange)

    def _exchange(self, *message: Any) -> tuple[int, bool]:
        self.messages += 1
        answer = self.budget.exchange(*message)
        self.most = max(self.most, self.budget.spent + self.budget.reserved)
        return answer


def test_purses_of_several_actors_share_one_budget_in_few_messages() -> None:
    """100 calls at 1 USD at worst and 0.10 in fact, with 5 USD: half of the calls can be made."""

    async def run() -> tuple[int, FakeCoordinator]:
        coordinator = FakeCoordinator(Budget(5.0, 0.0))
        purses = [Reservations(coordinator), Reservations(coordinator)]

        async def call(reservations: Reservations) -> bool:
            if not await reservations.reserve(1.0):
                return False
            await asyncio.sleep(0.005)
            reservations.settle(1.0, 0.1)
            return True

        made = await asyncio.gather(*(call(purses[n % 2]) for n in range(100)))
        await asyncio.sleep(0.1)
        return sum(made), coordinator

    made, coordinator = asyncio.run(run())
    assert coordinator.most <= 5.0
    assert made in (40, 41)  # at 4.0 spent there is room for one more at its worst, at 4.1 for none
    assert coordinator.budget.spent == pytest.approx(0.1 * made)
    assert coordinator.budget.reserved == pytest.approx(0.0)
    assert coordinator.messages < 150


def test_without_a_price_nobody_asks_the_desk() -> None:
    async def run() -> bool:
        return await Reservations(None).reserve(1.0)

    assert asyncio.run(run())
