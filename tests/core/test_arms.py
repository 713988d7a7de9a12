"""Arms: which betas each gives to whom, and which names are none."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from sp2dpo_ray.core.arms import parse_arm
from sp2dpo_ray.core.schedule.estimators import Estimator
from sp2dpo_ray.core.schedule.mapping import BetaMap
from sp2dpo_ray.core.schedule.recipe import Recipe
from sp2dpo_ray.errors import ConfigError, DataError
from tests.core.schedule.test_columns import PANEL, annotations, build

RECIPE = Recipe(PANEL)

ARMS = {
    "jmamp": "beta_annotators_mean_ens",
    "sa-openai-v2": "beta_openai_v2",
    "se-gemini": "beta_gemini_ens",
    "ma-v3": "beta_annotators_mean_v3",
    "random": "beta_random",
    "column:beta_qwen_v1": "beta_qwen_v1",
}


@pytest.mark.parametrize("name", ARMS)
def test_arms_read_their_column(name: str) -> None:
    table = build(annotations()).table
    ids = table["prompt_id"].to_pylist()[::-1]
    expected = table[ARMS[name]].to_pylist()[::-1]
    assert parse_arm(name).betas(table, RECIPE, ids).tolist() == expected


def test_an_estimator_with_a_map_of_its_own_keeps_that_envelope() -> None:
    own = Estimator("mine", "of its own", mapping=BetaMap(beta_max=0.6))
    recipe = Recipe(PANEL, estimators=(own,))
    table = pa.table({"prompt_id": ["a", "b"], "beta_mine": [0.5, 0.6]})
    arm = parse_arm("column:beta_mine")
    assert arm.betas(table, recipe, ["a", "b"]).tolist() == [0.5, 0.6]
    assert parse_arm("column:beta_mine+hybrid").bounds(recipe) == (0.03, 0.6)
    with pytest.raises(DataError, match="envelope"):
        arm.betas(table, RECIPE, ["a", "b"])


def test_constant_arms_need_no_schedule() -> None:
    assert parse_arm("dpo:0.1").betas(None, None, ["a", "b"]).tolist() == [0.1, 0.1]
    assert not parse_arm("dpo:0.1").needs_schedule
    assert parse_arm("dpo:0.1").folder == "dpo-0.1"


def test_controls_keep_what_they_control_for() -> None:
    table = build(annotations(50)).table
    ids = table["prompt_id"].to_pylist()
    real = parse_arm("jmamp").betas(table, RECIPE, ids)
    shuffled = parse_arm("shuffled").betas(table, RECIPE, ids)
    assert sorted(shuffled) == sorted(real)
    assert (shuffled != real).mean() > 0.8
    matched = parse_arm("matched-constant").betas(table, RECIPE, ids)
    assert matched == pytest.approx(np.full(50, real.mean()), abs=1e-15)


@pytest.mark.parametrize("name", ["dpo", "dpo:", "dpo:0", "dpo:-1", "dpo:x", "jmamp2", "", "sa-a"])
def test_unknown_arms_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="arm"):
        parse_arm(name)


@pytest.mark.parametrize("value", [float("nan"), 0.0, -0.1, float("inf"), None])
def test_an_unusable_beta_is_refused_with_the_pairs_id(value: float | None) -> None:
    table = pa.table({"prompt_id": ["good", "bad"], "b": pa.array([0.1, value], pa.float64())})
    with pytest.raises(DataError, match="pair bad: b must be a positive number"):
        parse_arm("column:b").betas(table, RECIPE, ["good", "bad"])
    with pytest.raises(DataError, match="pair other"):
        parse_arm("column:b").betas(table, RECIPE, ["other"])


def test_a_beta_outside_of_the_envelope_is_refused_with_the_pairs_id() -> None:
    def betas(value: float) -> None:
        table = pa.table({"prompt_id": ["a", "b"], "c": [0.03, value]})
        parse_arm("column:c").betas(table, RECIPE, ["a", "b"])

    betas(0.3 + 1e-12)
    for value in (0.029, 0.31, 3.0):
        with pytest.raises(DataError, match=r"pair b: its beta is .* envelope \[0\.03, 0\.3\]; 1"):
            betas(value)
