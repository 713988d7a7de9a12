"""What the stage counts: failures that may pass and those that cannot, money on its way."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pyarrow as pa
import pytest

from sp2dpo_ray.annotate import actor as module
from sp2dpo_ray.annotate import pipeline
from sp2dpo_ray.annotate.actor import OUTPUT, PLACE, PanelActor
from sp2dpo_ray.annotate.tally import Tally
from sp2dpo_ray.config import DecodingSection
from sp2dpo_ray.core.pairs import PAIR_FIELDS
from sp2dpo_ray.errors import Stopped
from tests.annotate.test_limits import Remote


def row(
    outcome: str, calls: int, *, final: bool = False, reused: bool = False, detail: str = ""
) -> dict[str, Any]:
    return {"teacher": "t", "outcome": outcome, "reused": reused, "calls": calls, "usd": 0.0,
            "detail": detail, "final": final}  # fmt: skip


def tally_of(*rows: dict[str, Any]) -> Tally:
    tally = Tally()
    tally.take(list(rows), lambda *_: None)
    return tally


def test_calls_that_cannot_end_better_are_no_reason_for_another_round() -> None:
    rows = [row("ok", 5), row("transport", 3, final=True)]
    assert tally_of(*rows).failed == 0
    assert tally_of(*rows, row("transport", 2), row("quota", 1)).failed == 3


def test_a_later_round_leaves_them_counted_as_they_ended() -> None:
    tally = tally_of(row("ok", 5), row("transport", 3, final=True), row("transport", 2))
    # found as given up: 3 calls; asked again: 2, of which one turns out to be at fault itself
    later = tally_of(row("ok", 8, reused=True), row("ok", 1), row("transport", 1, final=True))
    tally.replace_failed(later)
    assert tally.outcomes["t"] == Counter({"ok": 6, "transport": 4})
    assert tally.failed == 0


@pytest.mark.parametrize("outcome", ["budget_stop", "auth", "not_attempted"])
def test_the_stage_ends_when_nothing_is_under_way_any_more(
    outcome: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batch after the stop was under way; those behind it were not asked."""
    said: list[int] = []
    taken: list[int] = []

    def batches(*_: Any) -> Iterator[pa.Table]:
        rows = [[row("ok", 1)], [row("ok", 1), row(outcome, 2, detail="first")],
                [row("ok", 4), row("not_attempted", 3, detail="the stage is stopping")],
                *[[row("not_attempted", 3, detail="the stage is stopping")]] * 100]  # fmt: skip
        for number, batch in enumerate(rows):
            taken.append(number)
            yield pa.Table.from_pylist(batch, schema=OUTPUT)

    def stop() -> int:
        said.append(len(taken))
        return 2 if len(said) > 3 else 0

    monkeypatch.setattr(pipeline, "_stream", batches)
    monkeypatch.setattr(pipeline.ray, "get", lambda value: value)
    coordinator = SimpleNamespace(stop=SimpleNamespace(remote=stop))
    spec: Any = SimpleNamespace(actors=2, decoding=DecodingSection())
    tally = Tally()
    with pytest.raises(Stopped) as stopped:
        pipeline.annotate(
            [], spec, cast(Any, None), coordinator, cast(Any, None),
            rounds=3, pairs_per_batch=1, progress=lambda *_: None, tally=tally,
        )  # fmt: skip
    made = 8 if outcome == "auth" else 6  # a refused call was made
    assert f"answers to {made} calls" in str(stopped.value)
    assert ("first" in str(stopped.value)) == (outcome != "budget_stop")
    assert tally.outcomes["t"] == Counter({"ok": 6, outcome: 2})
    assert said == [2, 3, 4, 5]  # told at once, and no longer than it takes


def test_an_actor_lets_requests_end_and_begins_none(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> list[str]:
        events: list[str] = []
        stopping = iter([False, True])
        actor = PanelActor.__new__(PanelActor)
        actor._clients = {"t": SimpleNamespace(halt=lambda why: events.append("halted"))}
        actor._coordinator = SimpleNamespace(
            stopping=Remote(lambda: next(stopping)), idle=Remote(lambda: events.append("idle"))
        )
        actor._under_way = 1
        watching = asyncio.create_task(actor._watch())
        await asyncio.sleep(0.2)
        events.append("answered")
        actor._under_way = 0
        await watching
        return events

    monkeypatch.setattr(module, "WATCH_S", 0.01)
    assert asyncio.run(run()) == ["halted", "answered", "idle"]


def test_money_waits_for_a_batch_that_has_rows() -> None:
    """A batch of pairs that are all twins ends while another one of this actor is under way."""
    actor = PanelActor.__new__(PanelActor)
    actor._spec = SimpleNamespace(calls=lambda pairs: [])
    actor._clients = {"t": SimpleNamespace(usd=1.25, attempts=Counter())}
    actor._usd = {"t": 0.0}
    actor._metrics = SimpleNamespace(count=lambda table: None, attempts=lambda *_: None)
    pairs = pa.Table.from_pylist([], schema=pa.schema(PAIR_FIELDS))
    table = asyncio.run(actor._annotate(pairs.append_column(PLACE, pa.array([], pa.int64()))))
    assert (table.num_rows, table.schema) == (0, OUTPUT)
    assert actor._money_since() == {"t": 1.25}
