"""The two halves of the held-out pairs: one chooses, the other reports.

In: the pairs' ids. Out: which of them choose. Invariant: drawn by the ids, so the halves are the
same for every arm, seed and machine, and whatever the order of rows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sp2dpo_ray.core.hashing import uniform_draws

HALVES_SEED = 0


def tuning_half(ids: list[str]) -> NDArray[np.bool_]:
    """Which pairs choose: the half with the smaller draws, exact in number; (N,)."""
    draws = uniform_draws(ids, seed=HALVES_SEED, purpose="sweep-halves")
    chosen = np.zeros(len(ids), dtype=bool)
    chosen[np.argsort(draws, kind="stable")[: len(ids) // 2]] = True
    return chosen
