"""Every estimator against a slow, plain reference, and the properties that all of them share."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sp2dpo_ray.core.schedule import ensemble
from sp2dpo_ray.core.schedule.estimators import PRESETS, Estimator, Fit, Signals, estimate
from sp2dpo_ray.core.schedule.mapping import BetaMap
from sp2dpo_ray.core.schedule.reliability import fit_reliability

MAP = BetaMap()
cubes = arrays(np.float64, st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 4)),
               elements=st.floats(0, 1))  # fmt: skip
TOLERANCE = 1e-12


def signals(gap: np.ndarray) -> Signals:
    return Signals(gap, np.zeros(gap.shape, np.int8), np.ones(gap.shape))


def fit_of(gap: np.ndarray, seed: int = 0) -> Fit:
    """Any weights, and the offsets that belong to the gaps."""
    _, num_teachers, num_variants = gap.shape
    draw = np.random.default_rng(seed)
    alpha, gamma = draw.random(num_teachers) + 0.1, draw.random(num_variants) + 0.1
    teachers = tuple(f"t{j}" for j in range(num_teachers))
    variants = tuple(f"v{k}" for k in range(num_variants))
    return fit_reliability(
        [gap], teachers, variants,
        alpha=dict(zip(teachers, alpha, strict=True)),
        gamma=dict(zip(variants, gamma, strict=True)),
    )  # fmt: skip


# -- the references: plain Python, one pair at a time ---------------------------------------------

Pair = list[list[float]]  # gaps by teacher, then by prompt


def beta_of(gap: float) -> float:
    return 0.03 + 0.27 * min(max(gap, 0.0), 1.0)


def hierarchy(
    pair: Pair,
    over_prompts: Callable[[Sequence[float]], float] = statistics.median,
    over_teachers: Callable[[Sequence[float]], float] = statistics.fmean,
    damping: Callable[[float], float] = lambda u: 1.0,
) -> float:
    betas = []
    for calls in pair:
        middle = statistics.median(calls)
        disagreement = statistics.median(abs(gap - middle) for gap in calls)
        betas.append(beta_of(over_prompts(calls) * damping(disagreement)))
    return over_teachers(betas)


def weighted(weights: Sequence[float]) -> Callable[[Sequence[float]], float]:
    return lambda values: (
        sum(w * value for w, value in zip(weights, values, strict=True)) / sum(weights)
    )


def trimmed(values: Sequence[float], share: float) -> float:
    cut = math.floor(share * len(values))
    return statistics.fmean(sorted(values)[cut : len(values) - cut])


def huber(values: Sequence[float], delta: float) -> float:
    """The middle of the minimisers, found by halving on either side."""

    def slope(mu: float) -> float:
        total = sum(min(max(value - mu, -delta), delta) for value in values)
        return 0.0 if abs(total) <= 1e-12 * delta * len(values) else total

    def edge(inside: Callable[[float], bool]) -> float:
        low, high = min(values) - 2 * delta, max(values) + 2 * delta
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if inside(middle) else (low, middle)
        return low

    return (edge(lambda mu: slope(mu) > 0) + edge(lambda mu: slope(mu) >= 0)) / 2


def debiased(gap: np.ndarray, ridge: float = 1.0) -> np.ndarray:
    """g_i of Eq. 44 by one dense least squares over all unknowns; missing calls left out."""
    num_pairs, num_teachers, num_variants = gap.shape
    rows, right = [], []
    for i, j, k in np.argwhere(~np.isnan(gap)):
        row = np.zeros(num_pairs + num_teachers + num_variants)
        row[[i, num_pairs + j, num_pairs + num_teachers + k]] = 1.0
        rows.append(row)
        right.append(gap[i, j, k])
    penalty = np.sqrt(ridge) * np.eye(num_pairs + num_teachers + num_variants)[num_pairs:]
    design = np.concatenate([np.array(rows), penalty])
    solved = np.linalg.lstsq(design, np.concatenate([right, np.zeros(len(penalty))]), rcond=None)
    return np.asarray(solved[0][:num_pairs])


def reference(name: str, pair: Pair, fit: Fit) -> float:
    flat = [gap for calls in pair for gap in calls]
    joint = [a * g for a in fit.alpha_J for g in fit.gamma_K]
    return {
        "mean_prompts": lambda: hierarchy(pair, over_prompts=statistics.fmean),
        "weighted_prompts": lambda: hierarchy(pair, over_prompts=weighted(fit.gamma_K)),
        "median_teachers": lambda: hierarchy(pair, over_teachers=statistics.median),
        "trimmed_teachers": lambda: hierarchy(pair, over_teachers=lambda b: trimmed(b, 0.25)),
        "huber_teachers": lambda: hierarchy(pair, over_teachers=lambda b: huber(b, 0.027)),
        "weighted_teachers": lambda: hierarchy(pair, over_teachers=weighted(fit.alpha_J)),
        "pooled": lambda: beta_of(weighted(joint)(flat)),
        "damped_exp": lambda: hierarchy(pair, damping=lambda u: math.exp(-4 * u)),
        "damped_rational": lambda: hierarchy(pair, damping=lambda u: 1 / (1 + 4 * u)),
    }[name]()


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "debiased"])
@given(gap=cubes)
def test_each_estimator_equals_its_reference(name: str, gap: np.ndarray) -> None:
    fit = fit_of(gap)
    fast = estimate(PRESETS[name], signals(gap), fit, MAP)
    slow = [reference(name, pair, fit) for pair in gap.tolist()]
    assert fast == pytest.approx(slow, abs=TOLERANCE)


@given(cubes, st.randoms(use_true_random=False))
def test_the_bias_decomposition_equals_dense_least_squares(gap: np.ndarray, random: Any) -> None:
    holes = gap.copy()
    for i, j, k in np.argwhere(~np.isnan(gap)):
        if random.random() < 0.3 and (~np.isnan(holes[i])).sum() > 1:
            holes[i, j, k] = np.nan
    for values in (gap, holes):
        fast = estimate(PRESETS["debiased"], signals(values), fit_of(values), MAP)
        assert fast == pytest.approx(MAP(debiased(values)), abs=TOLERANCE)


@given(cubes)
def test_with_every_call_there_the_decomposition_is_the_plain_mean_of_all(gap: np.ndarray) -> None:
    """Offsets sum to zero over a whole panel: Eq. 44 can only tell where calls are missing."""
    fast = estimate(PRESETS["debiased"], signals(gap), fit_of(gap), MAP)
    assert fast == pytest.approx(MAP(gap.reshape(len(gap), -1).mean(axis=1)), abs=TOLERANCE)


def test_the_decomposition_mends_what_a_missing_generous_teacher_would_do() -> None:
    """Two pairs of equal worth; the second was not asked of the generous teacher."""
    draw = np.random.default_rng(0)
    worth = draw.random(400)[:, None, None] * 0.5 + 0.1
    gap = worth + np.array([0.0, 0.25])[None, :, None] + np.zeros((1, 1, 2))
    gap[::2, 1, :] = np.nan
    one = estimate(PRESETS["debiased"], signals(gap), fit_of(gap), MAP)
    plain = estimate(replace(PRESETS["pooled"]), signals(gap), fit_of(gap), MAP)
    truth = MAP(worth[:, 0, 0] + 0.125)
    assert abs(one - truth).max() < 0.01
    assert abs(plain - truth).max() > 0.02


@pytest.mark.parametrize("name", PRESETS)
@given(gap=cubes, random=st.randoms(use_true_random=False))
def test_order_changes_nothing(name: str, gap: np.ndarray, random: Any) -> None:
    teachers = random.sample(range(gap.shape[1]), gap.shape[1])
    variants = random.sample(range(gap.shape[2]), gap.shape[2])
    pairs = random.sample(range(gap.shape[0]), gap.shape[0])
    fit = fit_of(gap)
    moved = Fit(
        fit.gamma_K[variants], fit.alpha_J[teachers],
        fit.teacher_offset_J[teachers], fit.prompt_offset_K[variants],
    )  # fmt: skip
    one = estimate(PRESETS[name], signals(gap), fit, MAP)
    other = estimate(PRESETS[name], signals(gap[pairs][:, teachers][:, :, variants]), moved, MAP)
    assert (one[pairs] == other).all()


@pytest.mark.parametrize("name", PRESETS)
@given(value=st.floats(0, 1), shape=st.tuples(*[st.integers(1, 5)] * 3))
def test_constants_stay_constants(name: str, value: float, shape: tuple[int, int, int]) -> None:
    gap = np.full(shape, value)
    beta = estimate(PRESETS[name], signals(gap), fit_of(gap), MAP)
    # the offsets of Eq. 44 are 0 up to their own rounding
    assert beta == pytest.approx(np.full(shape[0], MAP(np.array(value))), abs=1e-13)


@pytest.mark.parametrize("name", PRESETS)
@given(gap=cubes)
def test_no_estimator_leaves_the_envelope(name: str, gap: np.ndarray) -> None:
    beta = estimate(PRESETS[name], signals(gap), fit_of(gap), MAP)
    assert ((beta >= 0.03) & (beta <= 0.3)).all()


@pytest.mark.parametrize("name", PRESETS)
def test_calls_that_were_left_out_are_no_zeros(name: str) -> None:
    gap = np.array([[[0.4, 0.4, np.nan], [0.4, 0.4, 0.4]]])
    beta = estimate(PRESETS[name], signals(gap), fit_of(gap), MAP)
    assert beta == pytest.approx([beta_of(0.4)], abs=1e-13)


def test_an_outlier_moves_the_robust_ones_little() -> None:
    gap = np.full((1, 5, 3), 0.2)
    gap[0, 0] = 1.0
    moved = {
        name: abs(estimate(row, signals(gap), fit_of(gap), MAP)[0] - beta_of(0.2))
        for name, row in PRESETS.items()
    }
    for robust in ("median_teachers", "trimmed_teachers"):
        assert moved[robust] == 0
    assert moved["huber_teachers"] == pytest.approx(0.027 / 4)  # four pull with a distance, one
    assert moved["mean_prompts"] == pytest.approx(0.27 * 0.8 / 5)  # with delta at the most


def test_a_map_of_its_own() -> None:
    gap = np.full((2, 3, 3), 0.5)
    row = Estimator("mine", over_teachers="huber", mapping=BetaMap(shape="power", exponent=2.0))
    assert estimate(row, signals(gap), fit_of(gap), MAP) == pytest.approx([0.0975, 0.0975])
    flat = Estimator("flat", over_teachers="huber", mapping=BetaMap(beta_min=0.1, beta_max=0.1))
    assert estimate(flat, signals(gap), fit_of(gap), MAP).tolist() == [0.1, 0.1]


@pytest.mark.parametrize(
    "wrong",
    [
        {"over_prompts": "mode"}, {"over_teachers": "max"}, {"joint": "mixed"}, {"damping": "log"},
        {"trim": 0.5}, {"huber_delta": 0.0}, {"damping_lambda": -1.0},
        {"joint": "pooled", "damping": "exp"}, {"joint": "debiased", "over_teachers": "median"},
    ],
)  # fmt: skip
def test_impossible_estimators_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must be one of|needs|belong to"):
        Estimator("x", **wrong)


# -- reliability ----------------------------------------------------------------------------------


def panel_of_three(num_pairs: int = 4000) -> np.ndarray:
    """One teacher repeats itself, one follows the wording, one always says the same; the third
    prompt is noise."""
    draw = np.random.default_rng(1)
    truth = draw.random((num_pairs, 1, 1))
    noise = draw.random((num_pairs, 3, 3))
    gap = np.empty((num_pairs, 3, 3))
    gap[:, 0] = (0.9 * truth + 0.1 * noise)[:, 0]
    gap[:, 1] = (0.3 * truth + 0.7 * noise)[:, 1]
    gap[:, 2] = 0.5
    gap[:, :2, 2] = noise[:, :2, 2]
    return gap


def test_self_consistency_finds_who_can_be_relied_on() -> None:
    fit = fit_reliability([panel_of_three()], ("a", "b", "c"), ("v1", "v2", "v3"))
    assert fit.alpha_J[0] > 0.3 > fit.alpha_J[1] > fit.alpha_J[2] == 0
    assert min(fit.gamma_K[:2]) > 0.2
    assert fit.gamma_K[2] < 0.05


def test_weights_are_the_intraclass_correlation() -> None:
    gap = panel_of_three(50)
    fit = fit_reliability([gap], ("a", "b", "c"), ("v1", "v2", "v3"))
    for j in range(2):
        values = gap[:, j].tolist()
        num_pairs, num_prompts = len(values), 3
        grand = statistics.fmean(v for row in values for v in row)
        rows = [statistics.fmean(row) for row in values]
        columns = [statistics.fmean(row[k] for row in values) for k in range(num_prompts)]
        between = num_prompts * sum((r - grand) ** 2 for r in rows) / (num_pairs - 1)
        rest = sum(
            (values[i][k] - rows[i] - columns[k] + grand) ** 2
            for i in range(num_pairs)
            for k in range(num_prompts)
        ) / ((num_pairs - 1) * (num_prompts - 1))
        icc = (between - rest) / (between + (num_prompts - 1) * rest)  # ICC(3,1), two-way mixed
        assert fit.alpha_J[j] == pytest.approx(max(icc, 0), abs=1e-6)


def test_chunks_and_the_panels_order_change_no_bit_of_the_fit() -> None:
    gap = panel_of_three(1000)
    whole = fit_reliability([gap], ("a", "b", "c"), ("v1", "v2", "v3"))
    moved = fit_reliability(
        [gap[:, [2, 0, 1]][:, :, [1, 2, 0]]], ("c", "a", "b"), ("v2", "v3", "v1")
    )
    pieces = fit_reliability([gap[:300], gap[300:]], ("a", "b", "c"), ("v1", "v2", "v3"))
    for name in ("alpha_J", "teacher_offset_J"):
        assert (getattr(moved, name) == getattr(whole, name)[[2, 0, 1]]).all()
        assert (getattr(pieces, name) == getattr(whole, name)).all()
    for name in ("gamma_K", "prompt_offset_K"):
        assert (getattr(moved, name) == getattr(whole, name)[[1, 2, 0]]).all()


def test_without_anything_to_go_by_all_weigh_the_same() -> None:
    for gap in (np.zeros((0, 2, 3)), np.full((5, 2, 3), 0.3), np.full((1, 2, 3), 0.3)):
        fit = fit_reliability([gap], ("a", "b"), ("v1", "v2", "v3"))
        assert fit.alpha_J.tolist() == [1, 1]
        assert fit.gamma_K.tolist() == [1, 1, 1]
        assert not fit.teacher_offset_J.any()
    one = fit_reliability([np.array([[[0.2]], [[0.9]]])], ("a",), ("v1",))
    assert (one.alpha_J.tolist(), one.gamma_K.tolist()) == ([1], [1])


def test_medians_of_even_counts_and_holes() -> None:
    gap = np.array([[[0.1, 0.3, np.nan]], [[0.4, 0.2, 0.9]]])
    assert ensemble.median_over_prompts(gap)[:, 0].tolist() == [0.2, 0.4]
