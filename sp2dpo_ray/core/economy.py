"""Economy: which calls cannot matter any more.

In: the effective gaps that some of a teacher's K variants have given, the map, a tolerance. Out:
whether the rest may be left out. Invariant: leaving them out moves the pair's beta by `eps` at
most.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sp2dpo_ray.core.schedule.ensemble import Floats


def median_bounds(known: list[float], variants: int) -> tuple[float, float, float]:
    """Least, present and greatest median of `variants` gaps in [0, 1] of which some are known.

    The median never falls when one of its arguments rises. Every unknown gap lies in [0, 1], so the
    median lies between the one with all unknown gaps at 0 and the one with all at 1. With two of
    three known, a <= b, these are median(0, a, b) = a and median(a, b, 1) = b: the third answer can
    only choose a point of [a, b], and where a = b it can change nothing. The present value is the
    median of the known ones, (a + b) / 2.
    """
    missing = variants - len(known)
    low = float(np.median(known + [0.0] * missing))
    high = float(np.median(known + [1.0] * missing))
    return low, float(np.median(known)), high


def settled(
    known: list[float], variants: int, beta_of: Callable[[Floats], Floats], eps: float
) -> bool:
    """Whether the unknown gaps of one teacher can move the pair's beta by `eps` at most.

    Eqs. 16 to 18 make beta the mean over teachers of f(median over variants). f is monotone, so f
    of the true median lies between f(low) and f(high), and the value in its place, f(present), is
    off by at most r = max(f(high) - f(present), f(present) - f(low)). The mean over J teachers is
    then off by at most the mean of their r. With r <= eps for each teacher that was cut short, and
    r = 0 for the others, the pair's beta is off by eps at most, however many teachers were cut
    short.
    """
    if not known:
        return False
    low, present, high = beta_of(np.array(median_bounds(known, variants)))
    return bool(max(high - present, present - low) <= eps)


def needed_first(variants: int) -> int:
    """Variants to ask at once before looking: with fewer known, the bounds span far too much."""
    return variants // 2 + 1
