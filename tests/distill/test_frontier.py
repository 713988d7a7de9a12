"""What asking less would have cost: exact where it must be, and economy mode within its bound."""

from __future__ import annotations

import numpy as np
import pytest

from sp2dpo_ray.config.distill import DistillSection
from sp2dpo_ray.core.schedule.mapping import BetaMap
from sp2dpo_ray.distill.choice import at_random, widest
from sp2dpo_ray.distill.frontier import STOP, Panel, economy, frontier, left_out, markdown
from sp2dpo_ray.distill.predictions import Predictions, Raw, calibrated
from sp2dpo_ray.distill.targets import Targets
from tests.distill.test_predictor import world

BETA = BetaMap()


def panel(count: int = 600) -> Panel:
    texts, targets = world(count)
    draw = np.random.default_rng(0)
    shape = (count, 3, 3)
    gaps = np.clip(targets.gap[:, None, None] + draw.normal(scale=0.02, size=shape), 0, 1)
    ensembled = np.median(gaps, axis=2).mean(axis=1)
    exact = Targets(
        targets.ids, ensembled, targets.confidence, targets.turned_gap, targets.categories
    )
    return Panel(texts, exact, gaps, usd_per_call=0.001)


def test_more_calls_less_error_and_none_with_all() -> None:
    section = DistillSection(rounds=30, least_pairs=40)
    points = frontier(panel(), section, BETA, (0.05, 0.3, 0.7))
    assert {point.share for point in points} == {0.3, 0.7, 1.0}  # of 5 % nothing can be learned
    plain = {(p.choice, p.share): p for p in points if not p.economy}
    for choice in ("random", "active"):
        assert plain[choice, 0.3].error > plain[choice, 0.7].error > 0
        assert plain[choice, 0.3].calls == 180 * 9
        assert plain[choice, 0.3].usd == pytest.approx(1.62)
    assert plain["all", 1.0].error == 0
    thrifty = {(p.choice, p.share): p for p in points if p.economy}
    for place, point in thrifty.items():
        assert point.calls < plain[place].calls
        assert plain[place].error <= point.error <= plain[place].error + STOP
    remarks = left_out(panel(), section, (0.05, 0.3, 0.7))
    text = markdown(points, remarks)
    assert "| 30% | active | no | 1,620 | 1.62 |" in text
    assert text.endswith(
        "\n\n5% is left out: its first round would be 12 of 600 pairs, and distill.least_pairs "
        "asks for 40.\n"
    )


def test_the_error_is_that_of_the_map_that_is_given() -> None:
    section = DistillSection(rounds=10, least_pairs=40)
    steep = BetaMap(shape="power", exponent=3.0)
    linear, other = (frontier(panel(200), section, of, (0.6,))[0].error for of in (BETA, steep))
    assert other != pytest.approx(linear, rel=0.02)


def test_economy_never_moves_beta_by_more_than_it_promises() -> None:
    gaps = np.random.default_rng(1).random((200, 3, 3))
    made, off = economy(gaps, BETA, stop=0.02)
    assert (made >= 6).all()
    assert (made <= 9).all()
    assert off.max() <= 0.02 + 1e-12
    assert (off[made == 9] == 0).all()
    everything, nothing_off = economy(gaps, BETA, stop=0.0)
    assert nothing_off.max() == 0
    assert everything.sum() >= made.sum()


def said(
    width: list[float], category: list[int], unknown: list[float] | None = None
) -> Predictions:
    count = len(width)
    zeros = np.zeros(count)
    return Predictions(
        np.array(category, np.int8), np.zeros((count, 6)), zeros, zeros, zeros, zeros,
        np.array(width), np.array(unknown or zeros), np.array(width),
    )  # fmt: skip


def test_the_widest_come_first_within_their_category_and_the_unfamiliar_before_all() -> None:
    ids = [f"p{i}" for i in range(8)]
    found = said([0.1, 0.9, 0.2, 0.8, 0.3, 0.3, 0.3, 0.3], [0, 0, 0, 0, 5, 5, 5, 5])
    # widths of 2.0 and 1.2 in all: 3.1 and 1.9 of five, 1.25 and 0.75 of two
    assert widest(ids, found, 5).tolist() == [1, 2, 3, 4, 5]
    assert widest(ids, found, 2).tolist() == [1, 4]
    assert len(widest(ids, found, 99)) == 8
    odd = said([0.1, 0.9, 0.2, 0.8], [0, 0, 0, 0], [0.9, 0, 0, 0])
    assert 0 in widest(ids[:4], odd, 1)
    # the order of rows says nothing
    turned = said([0.8, 0.2, 0.9, 0.1], [0, 0, 0, 0])
    plain = said([0.1, 0.9, 0.2, 0.8], [0, 0, 0, 0])
    one = {ids[row] for row in widest(ids[:4], plain, 2)}
    other = {ids[3 - row] for row in widest(ids[:4][::-1], turned, 2)}
    assert one == other == {"p1", "p3"}


def test_the_choice_is_by_width_where_calibration_makes_every_interval_the_whole_range() -> None:
    """Of few calibration pairs the radius is infinite, and of many it may reach both ends."""
    ids = [f"p{i}" for i in range(4)]
    middle, spread = np.full(4, 0.5), np.array([0.1, 0.5, 0.2, 0.4])
    shares = np.tile(np.eye(6)[0], (4, 1))
    raw = Raw(shares, middle, middle, middle - spread / 2, middle + spread / 2, np.zeros(4))
    for moved_by in (0.0, 0.6, np.inf):
        assert widest(ids, calibrated(raw, moved_by), 2).tolist() == [1, 3]


def test_random_choice_grows_by_adding() -> None:
    ids = [f"p{i}" for i in range(50)]
    few, more = (set(at_random(ids, count, 0).tolist()) for count in (10, 30))
    assert few < more
    assert set(at_random(ids, 10, 1).tolist()) != few
