"""The coordinator of one run: its budget, which pairs were begun, whether the stage is stopping.

In: reservations and what became of them; places of pairs. Out: whether money is left; whether a
pair may have been worked on before. Invariant: money spent and money reserved for attempts in
flight, at their worst, never exceed the cap, not after a restart of this actor either.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Sequence
from typing import Any

import ray

from sp2dpo_ray.core.place import Place

STATE = "budget.json"


class Budget:
    """The arithmetic of the cap, in USD; `cap` None counts and never refuses.

    answered: for each caller the number of its last exchange and the answer. Ray repeats a call
    whose answer was lost with the actor, and what was settled then must not be settled twice.
    """

    def __init__(self, cap: float | None, spent: float, reserved: float = 0.0) -> None:
        self.cap = cap
        self.spent = spent
        self.reserved = reserved
        self.answered: dict[str, tuple[int, int, bool]] = {}

    @classmethod
    def restored(cls, cap: float | None, state: dict[str, Any]) -> Budget:
        budget = cls(cap, state["spent"], state["reserved"])
        budget.answered = {name: tuple(last) for name, last in state["answered"].items()}
        return budget

    @property
    def state(self) -> dict[str, Any]:
        return {"spent": self.spent, "reserved": self.reserved, "answered": self.answered}

    def exchange(
        self, caller: str, number: int, released: float, paid: float, wanted: Sequence[float]
    ) -> tuple[int, bool]:
        """Settle, then reserve; once for each caller and number, whoever repeats it."""
        last = self.answered.get(caller)
        if last is None or last[0] != number:
            self.settle(released, paid)
            last = self.answered[caller] = (number, *self.reserve(wanted))
        return last[1], last[2]

    def settle(self, released: float, paid: float) -> None:
        """Attempts have ended: their reservations, and what they cost."""
        self.reserved -= released
        self.spent += paid

    def reserve(self, wanted: Sequence[float]) -> tuple[int, bool]:
        """How many of the wanted sums are reserved, first come first served, and whether the budget
        is exhausted: the next has no room even if all that is in flight came back for free."""
        for count, sum_ in enumerate(wanted):
            if self.cap is not None and self.spent + self.reserved + sum_ > self.cap:
                return count, self.spent + sum_ > self.cap
            self.reserved += sum_
        return len(wanted), False


class Coordinator:
    """Ray actor, one a run. What it must not forget it writes beside the journal before it answers.

    patience_s: an attempt ends within this time; where nothing was settled for longer, money in
    flight belongs to a lost actor, and the budget counts as exhausted too.
    """

    def __init__(
        self, place: Place, session: str, cap: float | None, spent: float, patience_s: float
    ) -> None:
        self._place = place
        self._session = session
        self._patience_s = patience_s
        self._budget = Budget(cap, spent)
        self._settled_at = time.monotonic()
        self._begun = bytearray()  # a byte a pair
        self._stopping = False
        self._idle = 0
        self._forgot = ray.get_runtime_context().was_current_actor_reconstructed
        if self._forgot and cap is not None and STATE in place.files(STATE):
            state = json.loads(place.open(STATE).read())
            if state["session"] == session:
                self._budget = Budget.restored(cap, state)

    def begin(self, places: list[int]) -> bool:
        """Whether any of these pairs may have been begun before, so that calls may be on record.

        Of pairs and not of batches: what Ray runs again it may cut in other places.
        """
        self._begun.extend(bytes(max(0, max(places) + 1 - len(self._begun))))
        before = self._forgot or any(self._begun[place] for place in places)
        for place in places:
            self._begun[place] = 1
        return before

    def forget(self) -> None:
        """A new round: all pairs begin anew, with what is on record by now known to all."""
        self._begun = bytearray()

    def stop(self) -> int:
        """Let nothing more begin; how many actors have nothing under way any more."""
        self._stopping = True
        return self._idle

    def stopping(self) -> bool:
        return self._stopping

    def idle(self) -> None:
        """An actor that knows of the stop has nothing under way any more."""
        self._idle += 1

    def exchange(
        self, caller: str, number: int, released: float, paid: float, wanted: list[float]
    ) -> tuple[int, bool]:
        """Settle, then reserve; see `Budget`."""
        now = time.monotonic()
        if released or paid:
            self._settled_at = now
        count, exhausted = self._budget.exchange(caller, number, released, paid, wanted)
        if self._budget.cap is not None:
            state = {"session": self._session, **self._budget.state}
            self._place.put(STATE, json.dumps(state).encode())
        if count < len(wanted) and now - self._settled_at > self._patience_s:
            exhausted = True
        return count, exhausted


class CoordinatorClient:
    """One caller's talk with the coordinator: one thing at a time, and numbered, so that what Ray
    repeats counts once."""

    def __init__(self, coordinator: Any) -> None:
        self._coordinator = coordinator
        self._name = uuid.uuid4().hex
        self._number = 0
        self._turn = asyncio.Lock()

    async def exchange(self, released: float, paid: float, wanted: list[float]) -> tuple[int, bool]:
        """See `Coordinator.exchange`."""
        async with self._turn:
            self._number += 1
            answer: tuple[int, bool] = await self._coordinator.exchange.remote(
                self._name, self._number, released, paid, wanted
            )
            return answer


def start_coordinator(place: Place, cap: float | None, spent: float, patience_s: float) -> Any:
    """The coordinator of this command; `spent` is what the journal holds."""
    return (
        ray.remote(Coordinator)
        .options(num_cpus=0, max_restarts=-1, max_task_retries=-1)
        .remote(place, f"{time.time()}", cap, spent, patience_s)
    )
