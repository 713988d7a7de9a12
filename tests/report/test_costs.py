"""What answers cost: sums by teacher and judge, and nothing invented where no price is known."""

from __future__ import annotations

import pyarrow as pa

from sp2dpo_ray.core.costs import Price
from sp2dpo_ray.report.costs import CostRow, annotator_costs, judge_costs


def test_annotators_are_summed_over_answers_that_tell_tokens() -> None:
    calls = pa.table({
        "teacher": ["a", "a", "b", "a", "rules", "a"],
        "key": ["1", "2", "3", "4", "5", "2"],  # the last pair shares a call with another
        "prompt_tokens": pa.array([100, 300, 50, None, None, 300], pa.int64()),
        "completion_tokens": pa.array([10, 30, 5, None, None, 30], pa.int64()),
    })  # fmt: skip
    prices = {"a": Price(2.0, 8.0, 2.0), "b": None, "rules": None}
    one, two = annotator_costs(calls, prices)
    assert one == CostRow("teacher", "a", 2, 400, 40, (400 * 2 + 40 * 8) * 1e-6)
    assert (one.prompt_mean, one.completion_mean) == (200, 20)
    assert two == CostRow("teacher", "b", 1, 50, 5, None)


def test_judges_are_summed_over_students_and_benchmarks() -> None:
    judge = {"model": "j", "calls": 2, "prompt_tokens": 20, "completion_tokens": 4, "usd": 0.5}
    rows = [{"judge": judge}, {"judge": None}, {"judge": judge | {"usd": 0.25}}]
    assert judge_costs(rows) == [CostRow("judge", "j", 4, 40, 8, 0.75)]
    assert judge_costs([*rows, {"judge": judge | {"usd": None}}])[0].usd is None
