"""Students side by side: who is the baseline, what is compared, what a gap in the values does."""

from __future__ import annotations

from typing import Any

import pytest

from sp2dpo_ray.core.halves import tuning_half
from sp2dpo_ray.evaluate.standings import markdown, standings

ITEMS = [f"q{i}" for i in range(40)]
HALF = dict(zip(ITEMS, tuning_half(ITEMS), strict=True))


def result(values: dict[str, float | None]) -> dict[str, Any]:
    known = [value for value in values.values() if value is not None]
    figures = {"win_rate": 100 * sum(known) / len(known), "share A": 0.5}
    return {
        "figures": figures,
        "values": values,
        "notes": {"not_read": 40 - len(known)},
        "judge": None,
    }


def test_what_chooses_the_baseline_does_not_report() -> None:
    shines = {item: float(HALF[item]) for item in ITEMS}  # only where it is chosen
    steady = dict.fromkeys(ITEMS, 0.6)
    rows = standings(
        "alpaca_eval", "win_rate",
        {"dpo:0.1": result(shines), "dpo:0.3": result(steady), "jmamp": result(steady)},
        ["dpo:0.1", "dpo:0.3"],
    )  # fmt: skip
    assert {row["baseline"] for row in rows} == {"dpo:0.1"}
    assert rows[0]["value"]["mean"] == 0
    assert rows[0]["verdict"] == "baseline"
    assert rows[2]["gain"]["mean"] == pytest.approx(0.6)
    assert rows[2]["verdict"] == "better"
    assert {row["items_compared"] for row in rows} == {20}
    text = markdown(rows, ["openai"])
    assert "family of teachers openai" in text
    assert "| jmamp | 60.00 | +0.600 (+0.600 to +0.600) | better | 0 |" in text
    assert "share A" not in text


def test_an_item_without_a_value_is_compared_for_nobody() -> None:
    one = dict.fromkeys(ITEMS, 1.0) | {"q0": None, "q1": None}
    two = dict.fromkeys(ITEMS, 0.0) | {"q2": None}
    rows = standings("arena_hard", "win_rate", {"a": result(one), "b": result(two)}, [])
    assert rows[0]["baseline"] == "a"
    assert rows[0]["items_compared"] == 37 - 37 // 2
    assert rows[1]["gain"]["mean"] == -1
    assert "| b | 0.00 | -1.000 (-1.000 to -1.000) | worse | 1 |" in markdown(rows, [])


def test_without_a_common_item_nothing_is_compared() -> None:
    one = dict.fromkeys(ITEMS, 1.0)
    nothing = result(one) | {"values": dict.fromkeys(ITEMS), "figures": {"win_rate": None}}
    rows = standings("arena_hard", "win_rate", {"a": result(one), "b": nothing}, [])
    assert [row["verdict"] for row in rows] == ["baseline", "nothing to compare"]
    assert rows[1]["gain"] is None
    assert "| b |  |  | nothing to compare |" in markdown(rows, [])
