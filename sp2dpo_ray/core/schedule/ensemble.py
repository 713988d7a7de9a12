"""Robust ensembling: from calls to one number a teacher and one a pair (Eqs. 16 to 18, 31 to 44).

Axes: N pairs, J teachers, K prompt variants. Pure numpy in float64; NaN stands for a call that was
left out on purpose. Invariant: the order of teachers, variants or pairs changes no number, to the
last bit: whatever is summed is sorted first, since float addition is not associative.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
ROUNDING = 1e-12  # relative; less than this is zero


def _sorted(values: Floats) -> Floats:
    """Sorted along the last axis, NaN last; laid out in rows, or the layout would decide in which
    order numpy adds."""
    return np.sort(np.ascontiguousarray(values), axis=-1)


def effective_gap(magnitude: Floats, confidence: Floats) -> Floats:
    """Magnitude times confidence, elementwise (Eq. 29)."""
    return magnitude * confidence


def median_over_prompts(gap_NJK: Floats) -> Floats:
    """Median over the K prompt variants (Eqs. 16, 31); (N, J, K) to (N, J)."""
    # sorting a short last axis is several times faster than np.median's partition
    ordered = _sorted(gap_NJK)
    if not np.isnan(ordered[..., -1]).any():
        return _middle(ordered, np.asarray(ordered.shape[-1]))
    return _middle(ordered, (~np.isnan(ordered)).sum(axis=-1))


def _middle(ordered: Floats, count: NDArray[np.int64]) -> Floats:
    """Mean of the two middle ones of the first `count`; NaN where there are none."""
    last = ordered.shape[-1] - 1
    low = np.clip((count - 1) // 2, 0, last)
    high = np.clip(count // 2, 0, last)
    if not count.ndim:
        one, other = ordered[..., low], ordered[..., high]
    else:
        one = np.take_along_axis(ordered, low[..., None], axis=-1)[..., 0]
        other = np.take_along_axis(ordered, high[..., None], axis=-1)[..., 0]
    # (a + a) / 2 is a, so odd counts lose nothing
    return np.asarray((one + other) / 2)


def mean(values: Floats) -> Floats:
    """Mean over the last axis of what is there."""
    ordered = _sorted(values)
    if not np.isnan(ordered[..., -1]).any():
        return np.asarray(ordered.mean(axis=-1))
    with np.errstate(invalid="ignore"):
        return np.asarray(np.nansum(ordered, axis=-1) / (~np.isnan(ordered)).sum(axis=-1))


def weighted_mean(values: Floats, weights: Floats) -> Floats:
    """Weighted mean over the last axis of what is there (Eqs. 41, 42, 43).

    weights: (K,), not negative. Where all that is there has weight 0, the plain mean.
    """
    there = ~np.isnan(values)
    weight = _sorted(np.where(there, weights, 0.0)).sum(axis=-1)
    total = _sorted(np.where(there, values * weights, 0.0)).sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(weight > 0, _within(values, total / weight), mean(values))


def _within(values: Floats, result: Floats) -> Floats:
    """A mean lies between the least and the greatest; rounding must not move constants."""
    return np.clip(result, np.fmin.reduce(values, axis=-1), np.fmax.reduce(values, axis=-1))


def mean_over_teachers(beta_NJ: Floats) -> Floats:
    """Mean over the J teachers (Eqs. 17, 34); (N, J) to (N,). NaN where a teacher has none."""
    return np.asarray(_sorted(beta_NJ).mean(axis=1))


def median_over_teachers(beta_NJ: Floats) -> Floats:
    """Median over the J teachers (section C.5.3); (N, J) to (N,)."""
    return median_over_prompts(beta_NJ)


def trimmed_mean(beta_NJ: Floats, share: float) -> Floats:
    """Mean without the floor(share * J) least and greatest (section C.5.3); (N, J) to (N,).

    share: in [0, 0.5).
    """
    count = beta_NJ.shape[1]
    cut = int(share * count)
    return np.asarray(_sorted(beta_NJ)[:, cut : count - cut].mean(axis=1))


def huber_location(beta_NJ: Floats, delta: float) -> Floats:
    """The mu that minimises sum_j rho_delta(beta_ij - mu), Huber's loss (section C.5.3).

    Exact, without iteration: the loss's slope, psi(mu) = sum_j clip(beta_ij - mu, -delta, delta),
    falls piecewise linearly with breaks at beta_ij +- delta, so its zero lies on a line between two
    breaks. Where the slope is zero on a whole stretch, its middle, as for a median.
    """
    breaks = np.sort(np.concatenate([beta_NJ - delta, beta_NJ + delta], axis=1), axis=1)
    ordered = _sorted(beta_NJ)
    psi = np.zeros_like(breaks)
    for j in range(ordered.shape[1]):
        psi += np.clip(ordered[:, j : j + 1] - breaks, -delta, delta)
    psi[np.abs(psi) <= ROUNDING * delta * beta_NJ.shape[1]] = 0.0
    last = psi.shape[1] - 1
    left = last - np.argmax(psi[:, ::-1] > 0, axis=1)  # the last break with a positive slope
    right = np.argmax(psi < 0, axis=1)  # the first with a negative one

    def zero(at: NDArray[np.int64]) -> Floats:
        rows = np.arange(len(psi))
        here, there = psi[rows, at], psi[rows, at + 1]
        start, end = breaks[rows, at], breaks[rows, at + 1]
        return np.asarray(start + (end - start) * (here / (here - there)))

    return _within(beta_NJ, (zero(left) + zero(right - 1)) / 2)


def prompt_disagreement(gap_NJK: Floats) -> Floats:
    """Median absolute deviation over the prompt variants (Eq. 36); (N, J, K) to (N, J)."""
    return median_over_prompts(np.abs(gap_NJK - median_over_prompts(gap_NJK)[..., None]))


def teacher_std(beta_NJ: Floats) -> Floats:
    """Standard deviation over the teachers (Eq. 37), population form; (N, J) to (N,)."""
    return np.asarray(_sorted(beta_NJ).std(axis=1))


def teacher_mad(beta_NJ: Floats) -> Floats:
    """Median absolute deviation over the teachers (Eq. 38); (N, J) to (N,)."""
    return prompt_disagreement(beta_NJ)


# h(u) of Eq. 40: how much of a gap is left at a disagreement of u
DAMPING: dict[str, Callable[[Floats, float], Floats]] = {
    "none": lambda u, _: np.ones_like(u),
    "exp": lambda u, strength: np.exp(-strength * u),
    "rational": lambda u, strength: 1.0 / (1.0 + strength * u),
}
