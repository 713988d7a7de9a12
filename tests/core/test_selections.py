"""Selections and curricula: who is kept, in which order, and that row order decides nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from sp2dpo_ray.core.selections import SELECTIONS, choose, fused, potential


@dataclass
class Told:
    """Evidence that is given."""

    ids: list[str]
    values: dict[str, np.ndarray]

    def margin(self) -> np.ndarray:
        return self.values["margin"]

    def reference_gap(self) -> np.ndarray:
        return self.values["gap"]

    def implicit(self) -> np.ndarray:
        return self.values["implicit"]

    def difficulty(self) -> np.ndarray:
        return self.values["difficulty"]


def told(count: int = 60, seed: int = 0) -> Told:
    draw = np.random.default_rng(seed)
    names = ("margin", "gap", "implicit", "difficulty")
    values = {name: draw.normal(0, 2, count).round(1) for name in names}  # with ties
    return Told([f"p{i:03d}" for i in range(count)], values)


@pytest.mark.parametrize("name", SELECTIONS)
def test_the_order_of_rows_decides_nothing(name: str) -> None:
    evidence = told()
    turn = np.random.default_rng(1).permutation(len(evidence.ids))
    other = Told([evidence.ids[i] for i in turn], {k: v[turn] for k, v in evidence.values.items()})
    row = SELECTIONS[name]
    one, two = choose(row, row.share, evidence), choose(row, row.share, other)
    kept, again = ([e.ids[i] for i in c.places] for e, c in ((evidence, one), (other, two)))
    assert (kept == again) if row.ordered else (set(kept) == set(again))
    expected = len(evidence.ids) if row.teaches else round(row.share * len(evidence.ids))
    assert len(kept) == len(set(kept)) == expected


def test_each_keeps_what_it_says() -> None:
    evidence = told()
    values = evidence.values

    def kept(name: str, share: float) -> np.ndarray:
        return choose(SELECTIONS[name], share, evidence).places

    easiest = kept("selective", 0.5)
    assert np.diff(values["difficulty"][easiest]).min() >= 0  # easiest first
    assert values["difficulty"][easiest].max() <= np.delete(values["difficulty"], easiest).min()
    small = kept("implicit-gap", 0.1)
    assert (
        np.abs(values["implicit"][small]).max()
        <= np.abs(np.delete(values["implicit"], small)).min()
    )
    assert np.diff(values["margin"][kept("easy-first", 1.0)]).max() <= 0
    mixed = choose(SELECTIONS["mixdpo"], 0.6, evidence)
    assert mixed.supervised.sum() == 24
    assert values["margin"][mixed.places[mixed.supervised]].max() <= (
        values["margin"][mixed.places[~mixed.supervised]].min()
    )
    assert not choose(SELECTIONS["dual-margin"], 0.5, evidence).supervised.any()


def test_dual_margin_fuses_probabilities() -> None:
    external = np.concatenate([np.linspace(-4, 6, 100), [6.0] * 30])
    implicit = np.zeros(130)
    found = fused(external, implicit)
    # implicit: all equal, at their own top, so sure; external decides nothing against certainty
    assert found[external > -2].min() > 0.999
    both = fused(
        np.array([-3.0, *np.linspace(-2, 4, 60)]), np.array([-3.0, *np.linspace(-2, 4, 60)])
    )
    assert both[0] == 0  # both say no
    assert np.diff(both[1:]).min() >= -1e-12
    assert both[-1] == 1


def test_the_potential_is_margin_less_what_the_student_knows() -> None:
    margin, gap = np.array([1.0, 2.0, 3.0]), np.array([0.0, -1.0, 1.0])
    z = (margin - 2) / margin.std()
    g = (np.abs(gap) - 2 / 3) / np.abs(gap).std()
    assert potential(margin, gap) == pytest.approx(z - g)
    assert potential(margin, gap, k=2.5) == pytest.approx(z - 2.5 * g)
    assert np.isfinite(potential(np.ones(3), np.zeros(3))).all()
