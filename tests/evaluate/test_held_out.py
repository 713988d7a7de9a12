"""Held-out figures: each pair once, in groups, against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest

from sp2dpo_ray.evaluate.held_out import held_out_figures, quarters

TABLE = pa.table(
    {
        "prompt_id": list("abcd"),
        "margin": [2.0, -1.0, 0.0, 4.0],
        "category": ["Style", "Safety", "Safety", None],
        "schedule_beta": [0.1, 0.2, 0.2, None],
    }
)


def loss(*terms: tuple[float, float]) -> float:
    return sum(-math.log(1 / (1 + math.exp(-b * m))) for b, m in terms) / len(terms)


def test_every_pair_counts_once_in_each_grouping() -> None:
    found = held_out_figures(TABLE)
    assert (found["accuracy"], found["margin"], found["pairs"]) == (2.5 / 4, 1.25, 4)
    # of the pairs that have a beta, at that beta, whatever the arm trained with
    assert found["loss"] == pytest.approx(loss((0.1, 2), (0.2, -1), (0.2, 0)), rel=1e-12)
    assert found["by_category"]["Safety"] == {
        "accuracy": 0.25, "margin": -0.5, "pairs": 2,
        "loss": pytest.approx(loss((0.2, -1), (0.2, 0)), rel=1e-12),
    }  # fmt: skip
    assert found["by_category"]["unknown"] == {
        "accuracy": 1.0, "margin": 4.0, "loss": None, "pairs": 1
    }  # fmt: skip
    assert sum(row["pairs"] for row in found["by_beta"].values()) == 3
    assert "by_source" not in found


def test_groups_of_sources_where_the_pairs_carry_one() -> None:
    table = TABLE.append_column("source", pa.array(["web", "web", "chat", None]))
    found = held_out_figures(table)["by_source"]
    assert {name: row["pairs"] for name, row in found.items()} == {
        "chat": 1, "unknown": 1, "web": 2
    }  # fmt: skip
    assert found["web"]["margin"] == 0.5


def test_a_source_of_its_own_for_every_pair_is_no_grouping() -> None:
    many = pa.concat_tables([TABLE] * 20)
    table = many.append_column("source", pa.array([str(n) for n in range(80)]))
    assert "by_source" not in held_out_figures(table)


def test_no_pair_no_figures() -> None:
    assert held_out_figures(TABLE.slice(0, 0)) == {"pairs": 0}


def test_quarters_of_beta_hold_ties_together() -> None:
    beta = np.array([0.03, 0.1, 0.2, 0.3, np.nan, 0.15])
    assert quarters(beta) == ["0.030 to 0.100", "0.100 to 0.150", "0.200 to 0.300",
                              "0.200 to 0.300", "unknown", "0.150 to 0.200"]  # fmt: skip
    assert quarters(np.full(3, 0.1)) == ["0.100"] * 3
    assert quarters(np.full(2, np.nan)) == ["unknown"] * 2
    half = np.array([0.03] * 6 + [0.3] * 2)
    assert len(set(quarters(half)[:6])) == 1
