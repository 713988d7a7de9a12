"""Intervals that hold what they promise: conformalised quantile regression.

In: predicted quantiles and truths of pairs that training has not seen. Out: how far the quantiles
must be moved. Source: Romano, Patterson, Candes (2019), Conformalized Quantile Regression (their
Eqs. 5 to 7). Invariant: for pairs like those of the calibration, an interval holds the truth with
the stated probability at least, whatever the model.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def radius(low: Floats, high: Floats, truth: Floats, coverage: float) -> float:
    """What [low - radius, high + radius] needs to hold a new truth with probability `coverage`.

    Infinite where there are too few pairs to promise that: n of them can promise n / (n + 1).
    """
    scores = np.sort(np.maximum(low - truth, truth - high))
    rank = math.ceil((len(scores) + 1) * coverage)
    return math.inf if rank > len(scores) else float(scores[rank - 1])


def intervals(low: Floats, high: Floats, moved_by: float, middle: Floats) -> tuple[Floats, Floats]:
    """Low and high ends within [0, 1], with `middle` in between."""
    ends = np.clip(low - moved_by, 0, 1), np.clip(high + moved_by, 0, 1)
    return np.minimum(ends[0], middle), np.maximum(ends[1], middle)


def covered(low: Floats, high: Floats, truth: Floats) -> float:
    """Share of the truths that lie within; NaN of none."""
    return float(((low <= truth) & (truth <= high)).mean()) if len(truth) else math.nan
