"""Measures of agreement: rank correlation for gaps, Krippendorff's alpha for categories.

In: arrays. Out: numbers; NaN where a measure is not defined. Invariant: neither the order of raters
nor that of pairs matters.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sp2dpo_ray.core.schedule.ensemble import Floats
from sp2dpo_ray.core.taxonomy import CATEGORIES


def ranks(values: Floats) -> Floats:
    """Ranks from 1, ties at their mean rank; (N,)."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray(((last - counts + 1 + last) / 2)[inverse])


def standard_ranks(values: Floats) -> Floats | None:
    """Ranks with mean 0 and length 1, so that a product of two is Spearman's rho; None where all
    values are equal."""
    centred = ranks(values) - (len(values) + 1) / 2
    length = np.sqrt((centred**2).sum())
    return centred / length if length else None


def spearman(one: Floats, other: Floats) -> float:
    """Rank correlation over the pairs where both are there; NaN where a side is constant."""
    both = ~(np.isnan(one) | np.isnan(other))
    return rank_product(standard_ranks(one[both]), standard_ranks(other[both]))


def rank_product(one: Floats | None, other: Floats | None) -> float:
    if one is None or other is None:
        return float("nan")
    return float(np.clip(one @ other, -1.0, 1.0))


def votes_by_category(codes: NDArray[Any]) -> NDArray[np.int64]:
    """How many raters chose each category; (N, R) codes, -1 for none, to (N, 6)."""
    return np.stack([(codes == code).sum(axis=1) for code in range(len(CATEGORIES))], axis=1)


def nominal_alpha(votes: NDArray[np.int64]) -> float:
    """Krippendorff's alpha for nominal data from votes by category; (N, C).

    alpha = 1 - D_o / D_e with the coincidences of values within pairs (K. Krippendorff, "Computing
    Krippendorff's Alpha-Reliability", 2011, sections B and C). Raters may be missing; pairs with
    fewer than two count for nothing. NaN where only one value occurs.
    """
    raters = votes.sum(axis=1)
    votes, raters = votes[raters >= 2].astype(np.float64), raters[raters >= 2]
    weighted = votes / (raters - 1)[:, None]
    coincidences = votes.T @ weighted - np.diag(weighted.sum(axis=0))
    totals = coincidences.sum(axis=1)
    everything = totals.sum()
    expected = everything**2 - (totals**2).sum()
    if expected <= 0:
        return float("nan")
    observed = everything - coincidences.trace()
    return float(1 - (everything - 1) * observed / expected)


def alpha_of_category(votes: NDArray[np.int64], code: int) -> float:
    """Alpha of one category against all others."""
    chosen = votes[:, code]
    return nominal_alpha(np.stack([chosen, votes.sum(axis=1) - chosen], axis=1))
