"""Betas that are computed from a published schedule: other maps, soft labels, controls, weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from sp2dpo_ray.core.arms import parse_arm
from sp2dpo_ray.core.derived import margin_weights, panel_confidence, panel_gap, panel_margin
from sp2dpo_ray.core.schedule.build import build_schedule
from sp2dpo_ray.core.schedule.columns import DEFAULT_BETA
from sp2dpo_ray.core.schedule.mapping import BetaMap
from sp2dpo_ray.core.schedule.reading import ANNOTATION_SCHEMA
from sp2dpo_ray.core.schedule.recipe import Recipe
from sp2dpo_ray.errors import ConfigError
from tests.core.schedule.test_columns import PANEL, annotations

RECIPE = Recipe(PANEL)


def whole(recipe: Recipe = RECIPE) -> pa.Table:
    made = build_schedule(pa.Table.from_pylist(annotations(40), schema=ANNOTATION_SCHEMA), recipe)
    table = made.table
    for name in made.diagnostics.column_names[1:]:
        table = table.append_column(name, made.diagnostics[name])
    return table


TABLE = whole()
IDS = TABLE["prompt_id"].to_pylist()


def betas(name: str) -> np.ndarray:
    return parse_arm(name).betas(TABLE, RECIPE, IDS)


@pytest.mark.parametrize(
    ("name", "mapping"),
    [
        ("beta_min=0.03", BetaMap()),
        ("shape=power,exponent=2.5,beta_max=0.6", BetaMap("power", beta_max=0.6, exponent=2.5)),
        ("shape=logistic,steepness=9,midpoint=0.3",
         BetaMap("logistic", steepness=9, midpoint=0.3)),
        ("shape=quantile,blend=0.5", BetaMap("quantile", blend=0.5)),
        ("Safety.beta_max=0.9,gate_low=0.2,gate_high=0.7",
         BetaMap(categories=(("Safety", 0.03, 0.9),), gate=(0.2, 0.7))),
    ],
)  # fmt: skip
def test_another_map_gives_what_its_own_schedule_would_hold(name: str, mapping: BetaMap) -> None:
    expected = whole(replace(RECIPE, mapping=mapping))[DEFAULT_BETA].to_pylist()
    assert betas(f"map:{name}").tolist() == expected


@pytest.mark.parametrize("row", RECIPE.estimators, ids=lambda row: row.name)
def test_every_estimator_can_be_asked_for(row) -> None:
    expected = TABLE[row.column].to_numpy()
    assert betas(f"map:estimator={row.name}") == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("estimator=best", "estimator 'best' is unknown; there are"),
        ("beta_min=0.5", "0 < beta_min <= beta_max"),
        ("shape=steps", "shape must be one of"),
        ("damping=strong", "damping must be one of"),
        ("gate_low=0.9,gate_high=0.1", "the gate needs"),
    ],
)
def test_a_map_that_cannot_be_is_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        betas(f"map:{name}")


def test_soft_labels_and_distances_follow_their_formulas() -> None:
    columns = [[TABLE[f"confidence_{t}_{v}"].to_numpy() for v in PANEL.variants]
               for t in PANEL.teachers]  # fmt: skip
    confidence = np.median(np.array(columns), axis=1).mean(axis=0)
    assert panel_confidence(TABLE, RECIPE) == pytest.approx(confidence, abs=1e-15)
    assert betas("geometric:0.2") == pytest.approx(0.2 * confidence, abs=1e-15)
    gap = np.mean([TABLE[f"effective_gap_{t}_ens"].to_numpy() for t in PANEL.teachers], axis=0)
    assert betas("da:0.1") == pytest.approx(0.1 * (1 + gap), abs=1e-15)
    # the margin is the log-odds of (1 + gap) / 2
    odds = np.log(((1 + gap) / 2) / (1 - (1 + gap) / 2))
    assert panel_margin(TABLE, RECIPE) == pytest.approx(odds, rel=1e-12)
    assert panel_gap(TABLE, RECIPE).min() >= 0


def test_a_schedule_is_scaled_for_methods_of_means() -> None:
    plain, scaled = betas("jmamp"), betas("jmamp+amapo")
    assert scaled.mean() == pytest.approx(2.0, abs=1e-12)
    assert scaled / plain == pytest.approx(np.full(len(plain), scaled[0] / plain[0]), rel=1e-12)
    assert betas("jmamp+amapo:3").mean() == pytest.approx(3.0, abs=1e-12)


def test_madpo_weighs_as_its_authors_do() -> None:
    """Transcribed from the formula with lambda 1: w = S(c m) / S(m), c between 1/2 and 2."""
    margins = np.array([-9.0, -1.0, 0.0, 1.0, 6.907, 12.0])
    options = {"c_max": 2.0, "tau": 6.907}

    def expected(m: float) -> float:
        if m <= -6.907:
            return 1.0
        c = 0.5 + 1.5 / (1 + (1.0 / 0.5) * np.exp(abs(m) - 6.907))
        return float((1 / (1 + np.exp(-c * m))) / (1 / (1 + np.exp(-m))))

    found = margin_weights(margins, options)
    assert found == pytest.approx([expected(m) for m in margins], rel=1e-12)
    assert found[4] == pytest.approx(1.0, abs=1e-12)  # at tau c is 1
    assert margin_weights(np.array([800.0, -800.0]), options) == pytest.approx([1.0, 1.0])
