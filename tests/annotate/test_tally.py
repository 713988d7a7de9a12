"""What the stage counts: failures that may pass and those that cannot, money on its way."""

from __future__ import annotations

import asyncio
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pyarrow as pa

from sp2dpo_ray.annotate.actor import OUTPUT, PLACE, PanelActor
from sp2dpo_ray.annotate.tally import Tally
from sp2dpo_ray.core.pairs import PAIR_FIELDS


def row(outcome: str, calls: int, *, final: bool = False, reused: bool = False) -> dict[str, Any]:
    return {"teacher": "t", "outcome": outcome, "reused": reused, "calls": calls, "usd": 0.0,
            "detail": "", "final": final}  # fmt: skip


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
