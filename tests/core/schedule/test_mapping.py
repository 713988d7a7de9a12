"""The family of maps: monotone in the gap, inside the envelope, with Eq. 15 as a member of each."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sp2dpo_ray.core.schedule.mapping import BetaMap
from sp2dpo_ray.core.taxonomy import CATEGORIES, CODE, Category

unit = st.floats(0, 1)
gaps = st.lists(unit, min_size=1, max_size=20)


@st.composite
def maps(draw: st.DrawFn) -> BetaMap:
    """Any map of the family, fitted on gaps of its own."""
    low = draw(st.floats(1e-3, 1))
    categories = tuple(
        (str(name), bottom, bottom + draw(unit))
        for name in draw(st.sets(st.sampled_from(CATEGORIES)))
        for bottom in [draw(st.floats(1e-3, 1))]
    )
    gate = tuple(sorted((draw(unit), draw(unit))))
    made = BetaMap(
        shape=draw(st.sampled_from(["linear", "power", "logistic", "quantile"])),
        beta_min=low,
        beta_max=low + draw(unit),
        exponent=draw(st.floats(0.05, 20)),
        steepness=draw(st.floats(0, 60)),
        midpoint=draw(unit),
        quantiles=draw(st.integers(2, 12)),
        blend=draw(unit),
        categories=categories,
        gate=draw(st.sampled_from([(0.0, 0.0), gate])),
    )
    return made.fitted(np.array(draw(gaps)))


@given(maps(), st.lists(st.floats(-0.5, 1.5), min_size=2).map(sorted), st.sampled_from(CATEGORIES),
       unit)  # fmt: skip
def test_every_map_is_monotone_and_stays_in_its_envelope(
    beta_of: BetaMap, rising: list[float], category: Category, confidence: float
) -> None:
    count = len(rising)
    code = np.full(count, CODE[category], np.int8)
    beta = beta_of(np.array(rising), code, np.full(count, confidence))
    assert (np.diff(beta) >= 0).all()
    own = {name: (low, high) for name, low, high in beta_of.categories}
    low, high = own.get(str(category), (beta_of.beta_min, beta_of.beta_max))
    assert (beta >= low).all()
    assert (beta <= high).all()
    assert beta_of.envelope[0] <= low
    assert high <= beta_of.envelope[1]


@given(maps(), unit, st.lists(unit, min_size=2).map(sorted))
def test_no_map_falls_with_confidence(beta_of: BetaMap, gap: float, rising: list[float]) -> None:
    code = np.zeros(len(rising), np.int8)
    beta = beta_of(np.full(len(rising), gap), code, np.array(rising))
    assert (np.diff(beta) >= 0).all()


@pytest.mark.parametrize(
    "beta_of",
    [
        BetaMap(shape="power", exponent=1.0),
        BetaMap(shape="logistic", steepness=0.0),
        BetaMap(shape="quantile", blend=0.0).fitted(np.array([0.1, 0.1, 0.9])),
        BetaMap(categories=(("Safety", 0.03, 0.3),)),
        BetaMap(gate=(0.0, 0.0)),
    ],
    ids=["power", "logistic", "quantile", "categories", "gate"],
)
def test_every_family_contains_the_linear_map(beta_of: BetaMap) -> None:
    gap = np.linspace(-0.2, 1.2, 101)
    code = np.zeros(101, np.int8)
    assert (beta_of(gap, code, np.ones(101)) == BetaMap()(gap)).all()


@pytest.mark.parametrize("shape", ["linear", "power", "logistic", "quantile"])
def test_the_ends_of_the_envelope_are_reached(shape: str) -> None:
    beta_of = BetaMap(shape=shape, exponent=2.5, steepness=9.0, midpoint=0.3)
    beta_of = beta_of.fitted(np.array([0.2, 0.4, 0.4, 0.7]))
    assert beta_of(np.array([0.0, 1.0])).tolist() == [0.03, 0.3]


def test_shapes_have_their_closed_forms() -> None:
    gap = np.array([0.1, 0.25, 0.5, 0.8])
    power = BetaMap(shape="power", exponent=2.0)(gap)
    assert power == pytest.approx(0.03 + 0.27 * gap**2, abs=1e-15)

    def sigma(x: Any) -> Any:
        return 1 / (1 + np.exp(-x))

    share = (sigma(8 * (gap - 0.4)) - sigma(-3.2)) / (sigma(4.8) - sigma(-3.2))
    logistic = BetaMap(shape="logistic", steepness=8.0, midpoint=0.4)(gap)
    assert logistic == pytest.approx(0.03 + 0.27 * share, abs=1e-14)


def test_the_quantile_shape_gives_ranks() -> None:
    seen = np.linspace(0, 1, 1001) ** 3  # gaps crowd near 0
    beta_of = BetaMap(shape="quantile", quantiles=100).fitted(seen)
    share = (beta_of(seen) - 0.03) / 0.27
    assert share == pytest.approx(np.linspace(0, 1, 1001), abs=0.02)  # of 100 pieces
    # where one value fills a fifth of the ranks, it gets the middle of them
    heavy = np.concatenate([np.linspace(0, 0.4, 41), np.full(20, 0.5), np.linspace(0.6, 1, 41)])
    fitted = BetaMap(shape="quantile", quantiles=10).fitted(heavy)
    assert (fitted(np.array([0.5]))[0] - 0.03) / 0.27 == pytest.approx(0.5, abs=1e-12)


def test_categories_have_envelopes_of_their_own() -> None:
    beta_of = BetaMap(categories=(("Safety", 0.1, 0.6), ("Style", 0.01, 0.05)))
    codes = np.array([CODE[Category.SAFETY], CODE[Category.STYLE], CODE[Category.REASONING], -1])
    beta = beta_of(np.full(4, 0.5), codes.astype(np.int8))
    assert beta == pytest.approx([0.35, 0.03, 0.165, 0.165], abs=1e-15)
    assert beta_of.envelope == (0.01, 0.6)


def test_the_gate_holds_back_the_unsure() -> None:
    ramp = BetaMap(gate=(0.2, 0.6))
    beta = ramp(np.ones(4), None, np.array([0.1, 0.2, 0.4, 0.9]))
    assert beta == pytest.approx([0.03, 0.03, 0.165, 0.3], abs=1e-15)
    step = BetaMap(gate=(0.5, 0.5))
    assert step(np.ones(2), None, np.array([0.4999, 0.5])).tolist() == [0.03, 0.3]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"shape": "cubic"}, "shape must be one of"),
        ({"beta_min": 0.0}, "0 < beta_min"),
        ({"categories": (("Style", 0.2, 0.1),)}, "envelope of Style"),
        ({"exponent": 0.0}, "exponent > 0"),
        ({"gate": (0.6, 0.2)}, "the gate needs"),
        ({"beta_max": float("nan")}, "0 < beta_min"),
    ],
)
def test_impossible_maps_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BetaMap(**wrong)


def test_a_map_asks_for_what_it_needs() -> None:
    with pytest.raises(ValueError, match="needs the category"):
        BetaMap(categories=(("Style", 0.01, 0.1),))(np.ones(1))
    with pytest.raises(ValueError, match="needs the confidence"):
        BetaMap(gate=(0.1, 0.2))(np.ones(1))
