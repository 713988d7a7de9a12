"""The Ray Data actor that asks the panel: concurrency on an event loop of its own.

In: a batch of pairs. Out: one row for each teacher and outcome, counted; the answers are in the
journal. Several batches run at once on one private loop, so that a slow consumer cannot freeze
requests in flight. Invariant: `__call__` never raises for a failed call, and an answer is in the
journal before it is counted here.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from dataclasses import dataclass, field
from math import isnan, nan
from typing import Any

import pyarrow as pa
import ray

from sp2dpo_ray.annotate.client import make_clients
from sp2dpo_ray.annotate.journal import Journal
from sp2dpo_ray.annotate.metrics import Metrics
from sp2dpo_ray.annotate.record import gap_of, places_of, prefix
from sp2dpo_ray.annotate.spec import PanelSpec
from sp2dpo_ray.core.annotation import SETTLED, Outcome
from sp2dpo_ray.core.calls import Call
from sp2dpo_ray.core.economy import needed_first, settled
from sp2dpo_ray.core.pairs import pairs_from

WATCH_S = 1.0
PLACE = "place"  # column of a pair's number among all pairs of the stage
OUTPUT = pa.schema(
    [
        ("teacher", pa.string()),
        ("outcome", pa.string()),
        ("reused", pa.bool_()),
        ("calls", pa.int64()),
        ("usd", pa.float64()),
        ("detail", pa.string()),
        ("final", pa.bool_()),  # it failed, and asking again cannot mend it
    ]
)


@dataclass(slots=True)
class _Counts:
    """What happened in a batch, by (teacher, outcome, reused, final)."""

    calls: Counter[tuple[str, str, bool, bool]] = field(default_factory=Counter)
    details: dict[tuple[str, str, bool, bool], str] = field(default_factory=dict)

    def add(
        self, call: Call, outcome: Outcome, detail: str = "", *, reused: bool = False,
        final: bool = False,
    ) -> None:  # fmt: skip
        place = (call.teacher, str(outcome), reused, final)
        self.calls[place] += 1
        if detail:
            self.details[place] = detail

    def table(self, usd: dict[str, float]) -> pa.Table:
        rows = []
        for place, calls in self.calls.items():
            teacher, outcome, reused, final = place
            money = usd.pop(teacher, 0.0)  # on the teacher's first row
            detail = self.details.get(place, "")
            rows.append((teacher, outcome, reused, calls, money, detail, final))
        columns = list(zip(*rows, strict=True)) or [[] for _ in OUTPUT]
        return pa.table(
            [pa.array(column, field.type) for column, field in zip(columns, OUTPUT, strict=True)],
            schema=OUTPUT,
        )


class PanelActor:
    """Callable class for `map_batches`; thread-safe, since all work happens on its loop.

    keys, gaps: of the calls that were settled when the stage began, see `Record`.
    """

    def __init__(self, spec: PanelSpec, keys: Any, gaps: Any, coordinator: Any) -> None:
        self._spec = spec
        self._keys = ray.get(keys)  # shared memory: all actors of a node read the same
        self._gaps = ray.get(gaps)
        self._coordinator = coordinator
        self._journal = Journal(spec.place)
        self._late: set[bytes] = set()
        self._reading = asyncio.Lock()
        self._metrics = Metrics()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._clients = asyncio.run_coroutine_threadsafe(
            make_clients(spec, coordinator), self._loop
        ).result()
        self._usd = dict.fromkeys(self._clients, 0.0)
        self._under_way = 0
        self._watching = asyncio.run_coroutine_threadsafe(self._watch(), self._loop)

    def __call__(self, batch: pa.Table) -> pa.Table:
        return asyncio.run_coroutine_threadsafe(self._annotate(batch), self._loop).result()

    async def _annotate(self, batch: pa.Table) -> pa.Table:
        counts = _Counts()
        if calls := self._spec.calls(pairs_from(batch)):
            if await self._coordinator.begin.remote(batch[PLACE].to_pylist()):
                # Ray gives a lost actor's pairs to this one: look at what was recorded meanwhile
                async with self._reading:
                    self._late |= await asyncio.to_thread(self._recorded)
            await self._ask_all(calls, counts)
        # money goes with rows: without any it waits for the next batch
        table = counts.table(self._money_since() if counts.calls else {})
        self._metrics.count(table)
        for name, client in self._clients.items():
            self._metrics.attempts(name, client.attempts)
            client.attempts.clear()
        return table

    async def _watch(self) -> None:
        """Once the stage is stopping, begin nothing, and say when what was begun has ended: a
        request that is cut off may be paid, and is asked again."""
        while not await self._coordinator.stopping.remote():
            await asyncio.sleep(WATCH_S)
        for client in self._clients.values():
            client.halt("the stage is stopping")
        while self._under_way:
            await asyncio.sleep(WATCH_S / 10)
        await self._coordinator.idle.remote()

    def _recorded(self) -> set[bytes]:
        return {
            prefix(entry["key"])
            for entry in self._journal.new_entries()
            if entry["kind"] == "result" and entry["outcome"] in SETTLED
        }

    async def _ask_all(self, calls: list[Call], counts: _Counts) -> None:
        groups: dict[tuple[str, str], list[tuple[Call, float | None]]] = {}
        for call, place in zip(
            calls, places_of([call.key for call in calls], self._keys), strict=True
        ):
            gap = None  # nothing on record
            if place >= 0:
                gap = float(self._gaps[place]) if len(self._gaps) else nan
            elif prefix(call.key) in self._late:
                gap = nan
            groups.setdefault((call.prompt_id, call.teacher), []).append((call, gap))
        await asyncio.gather(*(self._ask_group(group, counts) for group in groups.values()))

    async def _ask_group(self, group: list[tuple[Call, float | None]], counts: _Counts) -> None:
        """The variants of one teacher on one pair; the gap stands with those on record."""
        economy = self._spec.early_stop
        first = needed_first(len(group)) if economy else len(group)
        gaps = await asyncio.gather(*(self._ask(*item, counts) for item in group[:first]))
        for index in range(first, len(group)):
            call, known = group[index]
            # a failed answer leaves the pair incomplete; the others are asked all the same, so that
            # asking for the failed one again is all that is ever missing
            sure = known is None and not any(map(isnan, gaps)) and economy is not None
            if sure and settled(gaps, len(group), economy[1], economy[0]):
                counts.add(call, Outcome.SKIPPED)
            else:
                gaps.append(await self._ask(call, known, counts))

    async def _ask(self, call: Call, known: float | None, counts: _Counts) -> float:
        if known is not None:
            counts.add(call, Outcome.OK, reused=True)
            return known
        self._under_way += 1
        try:
            reply = await self._clients[call.teacher].ask(call)
        finally:
            self._under_way -= 1
        counts.add(call, reply.outcome, reply.detail, final=reply.non_retryable)
        return gap_of(reply.outcome, reply.text) if self._spec.early_stop else nan

    def _money_since(self) -> dict[str, float]:
        spent = {name: client.usd - self._usd[name] for name, client in self._clients.items()}
        self._usd = {name: client.usd for name, client in self._clients.items()}
        return spent
