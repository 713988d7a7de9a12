"""Selection: what chooses never reports, seeds count, ties fall the same way everywhere."""

from __future__ import annotations

import numpy as np
import pytest

from sp2dpo_ray.core.halves import tuning_half
from sp2dpo_ray.errors import ArtifactError
from sp2dpo_ray.evaluate.compare import accuracy_of, compare_arms
from sp2dpo_ray.evaluate.select import ArmMargins, Selection, select, sentence

IDS = [f"pair-{i}" for i in range(401)]


def choose(found: dict[str, ArmMargins]) -> Selection:
    return select(found, [name for name in found if name.startswith("dpo:")])


def arms(**margins: np.ndarray) -> dict[str, ArmMargins]:
    return {
        name.replace("_", ":"): ArmMargins(IDS, np.atleast_2d(m)) for name, m in margins.items()
    }


def test_halves_are_exact_fixed_by_ids_and_blind_to_order() -> None:
    half = tuning_half(IDS)
    assert half.sum() == 200
    turned = tuning_half(IDS[::-1])
    assert (turned[::-1] == half).all()
    assert not half[:201].all()


def test_pairs_of_one_prompt_are_on_one_side() -> None:
    """Of a hundred prompts, some with many pairs: half of the pairs as nearly as can be."""
    draw = np.random.default_rng(0)
    prompts = [f"p{number}" for number in range(100) for _ in range(draw.integers(1, 9))]
    half = tuning_half(prompts)
    assert set(np.array(prompts)[half]).isdisjoint(np.array(prompts)[~half])
    assert abs(half.sum() - len(prompts) / 2) <= 4
    assert not tuning_half(["p"] * 7).any() or tuning_half(["p"] * 7).all()
    assert tuning_half([]).tolist() == []
    margin = draw.normal(size=len(prompts))
    ids = [str(number) for number in range(len(prompts))]
    found = {name: ArmMargins(ids, margin[None]) for name in ("dpo:1", "jmamp")}
    rows = select(found, ["dpo:1"], prompts).rows
    assert {row.pairs for row in rows} == {int((~half).sum())}
    with pytest.raises(ArtifactError, match="there are 1"):
        select(found, ["dpo:1"], ["p"] * len(prompts))


def test_the_best_on_one_half_is_reported_on_the_other() -> None:
    """An arm that shines only where it is chosen gains nothing by it."""
    half = tuning_half(IDS)
    shines = np.where(half, 1.0, -1.0)
    steady = np.where(np.arange(401) % 4 == 0, -1.0, 1.0)
    found = choose(arms(dpo_1=shines, dpo_2=steady, jmamp=steady))
    assert (found.chosen, found.baseline) == ("dpo:1", "dpo:1")
    assert found.tuning["dpo:1"] == 1.0
    rows = {row.arm: row for row in found.rows}
    assert rows["dpo:1"].accuracy.mean == 0.0
    assert rows["jmamp"].accuracy.mean == accuracy_of(steady[~half]).mean()
    assert rows["jmamp"].verdict == "better"
    assert {row.pairs for row in found.rows} == {201}


def test_equal_accuracy_goes_by_margin_then_by_order() -> None:
    flat = np.ones(401)
    assert choose(arms(dpo_1=flat, dpo_2=2 * flat)).baseline == "dpo:2"
    assert choose(arms(dpo_1=flat, dpo_2=flat)).baseline == "dpo:1"
    assert choose(arms(random=flat, jmamp=flat)).baseline == "random"


def test_a_baseline_is_a_global_beta_even_if_another_arm_is_better() -> None:
    good, poor = np.ones(401), -np.ones(401)
    found = choose(arms(jmamp=good, dpo_1=poor))
    assert (found.chosen, found.baseline) == ("jmamp", "dpo:1")


def test_arms_of_other_pairs_and_too_few_pairs_are_refused() -> None:
    one = ArmMargins(["a"], np.ones((1, 1)))
    with pytest.raises(ArtifactError, match="two held-out prompts or more"):
        choose({"jmamp": one})
    with pytest.raises(ArtifactError, match="arm dpo:1 was scored on other held-out pairs"):
        choose({"jmamp": ArmMargins(["a", "b"], np.ones((1, 2))),
                "dpo:1": ArmMargins(["a", "c"], np.ones((1, 2)))})  # fmt: skip


def test_seeds_widen_the_interval() -> None:
    """An arm that gains with one seed and loses with the other is not told apart."""
    base = np.where(np.arange(401) % 2 == 0, 1.0, -1.0)
    up, down = np.ones(401), -np.ones(401)
    one = compare_arms({"b": (IDS, base), "a": (IDS, up)}, "b")[1]
    both = compare_arms({"b": (IDS, np.stack([base, base])), "a": (IDS, np.stack([up, down]))},
                        "b")[1]  # fmt: skip
    assert one.gain is not None
    assert both.gain is not None
    assert one.verdict == "better"
    assert (one.seeds, both.seeds) == (1, 2)
    assert both.verdict == "not told apart"
    assert both.gain.high - both.gain.low > one.gain.high - one.gain.low
    assert both.accuracy.mean == pytest.approx(0.5)


def test_one_seed_is_what_it_was() -> None:
    margin = np.random.default_rng(0).normal(size=401)
    flat = compare_arms({"a": (IDS, margin), "b": (IDS, margin + 0.3)}, "a")
    deep = compare_arms({"a": (IDS, margin[None]), "b": (IDS, margin[None] + 0.3)}, "a")
    assert flat == deep


def test_sentences_say_which_way() -> None:
    base = np.where(np.arange(401) % 2 == 0, 1.0, -1.0)
    rows = choose(arms(dpo_1=base, up=np.ones(401), down=-np.ones(401), same=base)).rows
    told = {row.arm: sentence(row, "dpo:1") for row in rows}
    assert told["dpo:1"] == "dpo:1 is what the others are compared with"
    assert told["up"].startswith("up is better than dpo:1: +")
    assert told["down"].startswith("down is worse than dpo:1: -")
    assert told["same"] == "same and dpo:1 are not told apart: +0.0 points (+0.0 to +0.0)"
