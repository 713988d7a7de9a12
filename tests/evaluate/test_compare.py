"""The comparison of arms: its figures, its intervals, and when it says that arms differ."""

from __future__ import annotations

import numpy as np
import pytest

from sp2dpo_ray.errors import ArtifactError
from sp2dpo_ray.evaluate.compare import accuracy_of, compare_arms, interval

IDS = [f"p{i}" for i in range(400)]


def test_ties_count_half() -> None:
    assert accuracy_of(np.array([-1.0, 0.0, 2.0])).tolist() == [0.0, 0.5, 1.0]


def test_equal_arms_are_not_told_apart() -> None:
    margin = np.random.default_rng(0).normal(size=400)
    base, other = compare_arms({"dpo:0.1": (IDS, margin), "jmamp": (IDS, margin)}, "dpo:0.1")
    assert (base.verdict, other.verdict) == ("baseline", "not told apart")
    assert other.gain is not None
    assert (other.gain.mean, other.gain.low, other.gain.high) == (0, 0, 0)


@pytest.mark.parametrize(("sign", "verdict"), [(1, "better"), (-1, "worse")])
def test_a_clear_difference_is_seen(sign: int, verdict: str) -> None:
    draw = np.random.default_rng(0)
    base = draw.normal(size=400)
    other = base + sign * 0.8
    rows = compare_arms({"a": (IDS, base), "b": (IDS, other)}, "a")
    assert rows[1].verdict == verdict
    assert rows[1].gain is not None
    assert rows[1].gain.low <= rows[1].gain.mean <= rows[1].gain.high


def test_pairing_makes_the_interval_of_a_difference_narrow() -> None:
    draw = np.random.default_rng(1)
    base = draw.normal(size=400)
    other = base.copy()
    other[:12] = np.abs(other[:12]) + 1  # better on twelve pairs, the same on all others
    row = compare_arms({"a": (IDS, base), "b": (IDS, other)}, "a")[1]
    assert row.gain is not None
    alone = row.accuracy.high - row.accuracy.low
    assert row.gain.high - row.gain.low < alone / 3


def test_the_interval_has_the_width_of_theory() -> None:
    margin = np.where(np.arange(400) < 280, 1.0, -1.0)
    (row,) = compare_arms({"a": (IDS, margin)}, "a")
    theory = 1.96 * np.sqrt(0.7 * 0.3 / 400)
    assert row.accuracy.mean == pytest.approx(0.7)
    assert row.accuracy.high - row.accuracy.mean == pytest.approx(theory, rel=0.12)
    assert row.accuracy.mean - row.accuracy.low == pytest.approx(theory, rel=0.12)


def test_arms_scored_on_other_pairs_are_refused() -> None:
    with pytest.raises(ArtifactError, match="arm b was scored on other held-out pairs"):
        compare_arms({"a": (IDS, np.ones(400)), "b": (IDS[::-1], np.ones(400))}, "a")


def test_pairs_of_one_prompt_do_not_tell_more_than_one() -> None:
    """Every pair ten times over under its prompt: the same interval; as pairs of their own they
    would make it three times narrower."""
    values = np.random.default_rng(1).normal(size=(2, 60))
    prompts = [f"p{number:02d}" for number in range(60)]
    one = interval(values)
    tenfold, names = np.repeat(values, 10, axis=1), [name for name in prompts for _ in range(10)]
    for found in (interval(values, prompts), interval(tenfold, names)):
        for end in ("mean", "low", "high"):
            assert getattr(found, end) == pytest.approx(getattr(one, end), abs=1e-12)
    naive = interval(tenfold)
    assert naive.high - naive.low < 0.5 * (one.high - one.low)


def test_prompts_with_more_pairs_weigh_more() -> None:
    """The mean is over pairs, whatever their prompts: of a plain resample by hand."""
    values, names = np.array([[0.0, 1.0, 1.0, 1.0]]), ["a", "b", "b", "b"]
    found = interval(values, names)
    assert found.mean == 0.75
    assert (found.low, found.high) == (0.0, 1.0)  # both drawn the same, a quarter of the time each
