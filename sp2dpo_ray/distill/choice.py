"""Which pairs the teachers are asked about next: at random, or where the predictor knows least.

In: pairs that are not asked about yet, what the predictor says of them, a number. Out: rows.
Invariant: rows depend on ids, predictions and the seed, never on order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sp2dpo_ray.core.hashing import uniform_draws
from sp2dpo_ray.core.taxonomy import CATEGORIES
from sp2dpo_ray.distill.predictions import UNFAMILIAR, Predictions

Rows = NDArray[np.int64]


def at_random(ids: list[str], count: int, seed: int) -> Rows:
    """So many rows, drawn by their ids; more of them later hold those of fewer."""
    draws = uniform_draws(ids, seed=seed, purpose="mix")
    return np.sort(np.argsort(draws, kind="stable")[:count])


def widest(ids: list[str], found: Predictions, count: int) -> Rows:
    """So many rows with the widest intervals before calibration, each predicted category in
    proportion to the width that it holds in all; pairs whose words training has not seen first."""
    width = np.where(found.unknown > UNFAMILIAR, 2.0, found.spread)  # no interval is as wide
    order = np.lexsort((np.array(ids), -width))
    of_category = [order[found.category[order] == code] for code in range(len(CATEGORIES))]
    weight = np.array([width[rows].sum() for rows in of_category])
    quota = _quotas(weight, np.array([len(rows) for rows in of_category]), count)
    return np.sort(np.concatenate([rows[:n] for rows, n in zip(of_category, quota, strict=True)]))


def _quotas(weight: NDArray[np.float64], most: Rows, count: int) -> Rows:
    """`count` shared out by weight and largest remainder, no part above its most; what a full part
    cannot take goes to the others."""
    count = min(count, int(most.sum()))
    quota = np.zeros(len(most), np.int64)
    while left := count - int(quota.sum()):
        heavy = np.where(quota < most, np.maximum(weight, 1e-12), 0.0)
        share = left * heavy / heavy.sum()
        whole = np.floor(share).astype(np.int64)
        remainder = np.where(heavy > 0, share - whole, -1.0)
        whole[np.argsort(-remainder, kind="stable")[: left - int(whole.sum())]] += 1
        quota = np.minimum(quota + whole, most)
    return quota
