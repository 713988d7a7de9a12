"""Agreement measures against published examples, and the figures of a schedule by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sp2dpo_ray.core.schedule.agreement import (
    alpha_of_category,
    nominal_alpha,
    spearman,
    votes_by_category,
)
from sp2dpo_ray.core.schedule.mapping import BetaMap
from sp2dpo_ray.core.schedule.recipe import Recipe
from tests.core.schedule.test_columns import PANEL, annotations
from tests.core.schedule.test_reading import build

# K. Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), section C: four observers,
# twelve units, missing values; nominal alpha is 0.743.
OBSERVERS = """
1 2 3 3 2 1 4 1 2 . . .
1 2 3 3 2 2 4 1 2 5 . 3
. 3 3 3 2 3 4 2 2 5 1 .
1 2 3 3 2 4 4 1 2 5 1 .
"""


def test_krippendorffs_own_example() -> None:
    codes = np.array(
        [[-1 if cell == "." else int(cell) for cell in line.split()]
         for line in OBSERVERS.strip().splitlines()]
    ).T  # fmt: skip
    assert nominal_alpha(votes_by_category(codes)) == pytest.approx(0.743, abs=5e-4)


@given(arrays(np.int8, st.tuples(st.integers(2, 8), st.integers(2, 5)),
              elements=st.integers(-1, 5)))  # fmt: skip
def test_alpha_equals_counting_pairs_of_raters(codes: np.ndarray) -> None:
    """1 - D_o / D_e, both as plain counts over pairs of values."""
    units = [[c for c in row if c >= 0] for row in codes.tolist()]
    units = [row for row in units if len(row) >= 2]
    values = [c for row in units for c in row]
    observed = sum(
        (a != b) / (len(row) - 1)
        for row in units for i, a in enumerate(row) for k, b in enumerate(row) if i != k
    )  # fmt: skip
    expected = sum(a != b for i, a in enumerate(values) for k, b in enumerate(values) if i != k)
    alpha = nominal_alpha(votes_by_category(codes))
    if not expected:
        assert np.isnan(alpha)
    else:
        by_hand = 1 - (observed / len(values)) / (expected / len(values) / (len(values) - 1))
        assert alpha == pytest.approx(by_hand, abs=1e-12)


def test_alpha_of_one_category_is_that_of_yes_and_no() -> None:
    codes = np.array([[0, 0, 1], [2, 3, 0], [0, 0, 0], [4, 4, 5]])
    yes = np.where(codes == 0, 0, 1)
    expected = nominal_alpha(votes_by_category(yes))
    assert alpha_of_category(votes_by_category(codes), 0) == pytest.approx(expected, abs=1e-15)


def test_rank_correlation_knows_holes_and_constants() -> None:
    one = np.array([0.1, 0.2, np.nan, 0.9])
    assert spearman(one, np.array([1.0, 2.0, 0.0, 3.0])) == pytest.approx(1.0)
    assert np.isnan(spearman(one, np.ones(4)))


def test_the_figures_are_those_of_the_tables() -> None:
    rows = annotations(200, seed=3)
    made = build(rows)
    found, beta = made.quality, made.table["beta_annotators_mean_ens"].to_numpy()
    assert found["pairs"] == 200
    assert found["beta"]["mean"] == pytest.approx(beta.mean(), abs=1e-9)
    category = np.array(made.diagnostics["category"].to_pylist())
    for name, row in found["by_category"].items():
        assert row["pairs"] == (category == name).sum()
        assert row["median"] == pytest.approx(np.median(beta[category == name]), abs=1e-9)
    assert sum(row["pairs"] for row in found["by_category"].values()) == 200
    assert [row["pairs"] for row in found["by_disagreement"].values()] == [50] * 4
    ties = made.table["category_qwen_ens_tie_break"].to_numpy(zero_copy_only=False)
    assert found["ties"]["qwen"] == pytest.approx(ties.mean())
    for name, row in found["estimators"].items():
        other = made.diagnostics[f"beta_{name}"].to_numpy()
        assert row["mean_move"] == pytest.approx(abs(other - beta).mean(), abs=1e-9)
        assert row["moved"] == pytest.approx((abs(other - beta) > 0.01).mean())
    gaps = [made.table[f"effective_gap_{t}_ens"].to_numpy() for t in PANEL.teachers]
    assert found["agreement"]["teachers"]["spearman"]["qwen ~ openai"] == pytest.approx(
        spearman(gaps[0], gaps[1]), abs=1e-9
    )


def with_predicted(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """The same, and pairs that a predictor told: one number in every call."""
    draw = np.random.default_rng(7)
    more = annotations(count, seed=9)
    for start in range(0, len(more), 9):
        told = {"magnitude": float(draw.random()), "confidence": float(draw.random())}
        for row in more[start : start + 9]:
            row |= told | {"prompt_id": f"told-{row['prompt_id']}", "outcome": "predicted",
                           "category": "Style"}  # fmt: skip
    return rows + more


def test_what_a_predictor_told_says_nothing_of_the_teachers() -> None:
    rows = annotations(200, seed=3)
    plain, mixed = build(rows).quality, build(with_predicted(rows, 300)).quality
    assert (mixed["pairs"], mixed["predicted"]) == (500, 300)
    assert mixed["fit"] == plain["fit"]
    assert mixed["by_disagreement"] == plain["by_disagreement"]


def test_a_map_of_quantiles_has_its_knots_from_all_pairs() -> None:
    rows, recipe = annotations(50, seed=3), Recipe(PANEL, BetaMap(shape="quantile", quantiles=4))
    plain, mixed = (build(each, recipe).quality for each in (rows, with_predicted(rows, 80)))
    assert mixed["fit"]["teacher_weights"] == plain["fit"]["teacher_weights"]
    assert mixed["fit"]["knots"] != plain["fit"]["knots"]


def test_drift_is_told_by_served_model() -> None:
    rows = annotations(10)
    for row in rows:
        late = int(row["prompt_id"][3:]) >= 6
        row["served_model"] = (
            f"{row['teacher']}-{'new' if late and row['teacher'] == 'qwen' else 'old'}"
        )
    served = build(rows).quality["served_models"]
    assert [(row["model"], row["calls"]) for row in served["qwen"]] == [
        ("qwen-old", 18), ("qwen-new", 12)
    ]  # fmt: skip
    assert [row["model"] for row in served["openai"]] == ["openai-old"]
    gaps = [r["magnitude"] * r["confidence"] for r in rows if r["served_model"] == "qwen-new"]
    assert served["qwen"][1]["gap"] == pytest.approx(np.mean(gaps), abs=1e-9)


def test_a_recipe_survives_its_json() -> None:
    import json

    from tests.core.schedule.test_reading import RECIPES

    for recipe in RECIPES.values():
        assert Recipe.from_json(json.loads(json.dumps(recipe.json))) == recipe
