"""Arms side by side: held-out preference accuracy and margin, with paired intervals.

In: for each arm the same held-out pairs and their margins (nats, not scaled by any beta, so arms of
different betas can be compared). Out: one row an arm. Invariant: every arm is resampled with the
same draws, so that a difference is judged pair by pair; pairs that share a prompt are drawn
together, since they do not tell independently of each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sp2dpo_ray.errors import ArtifactError

RESAMPLES = 4000
LEVEL = 0.95
SEED = 0
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and its bootstrap percentile interval."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, slots=True)
class ArmScore:
    """One row of the comparison; `gain` is accuracy less the baseline's, None for the baseline."""

    arm: str
    pairs: int
    accuracy: Interval
    margin: Interval
    gain: Interval | None
    verdict: str
    seeds: int = 1


def accuracy_of(margin_N: Floats) -> Floats:
    """1 where the preferred response gained on the other, 0 where it lost, 0.5 for a tie; (N,)."""
    return np.where(margin_N == 0, 0.5, (margin_N > 0).astype(np.float64))


def compare_arms(
    margins: dict[str, tuple[list[str], Floats]],
    baseline: str,
    prompts: Sequence[str] | None = None,
) -> list[ArmScore]:
    """Score every arm against the baseline, which comes first.

    margins: arm -> (pair ids, margins), the margins (N,), or (S, N) for S seeds. prompts: of the
    pairs; None: all differ. Prompts are drawn again, and seeds too where there are several: the
    interval then holds for another seed as well as for other prompts. Raises ArtifactError if the
    arms saw different pairs.
    """
    ids = margins[baseline][0]
    for arm, (theirs, _) in margins.items():
        if theirs != ids:
            raise ArtifactError(f"arm {arm} was scored on other held-out pairs than {baseline}")
    base = np.atleast_2d(accuracy_of(margins[baseline][1]))
    rows = []
    for arm in [baseline, *(name for name in margins if name != baseline)]:
        margin = np.atleast_2d(margins[arm][1])
        accuracy = accuracy_of(margin)
        gain = None if arm == baseline else gain_on(base, accuracy, prompts)
        rows.append(
            ArmScore(
                arm,
                len(ids),
                interval(accuracy, prompts),
                interval(margin, prompts),
                gain,
                verdict(gain),
                len(margin),
            )
        )
    return rows


def gain_on(base_SN: Floats, values_SN: Floats, groups: Sequence[str] | None = None) -> Interval:
    """How much larger the values are, item by item; seed by seed where both have as many, else
    against the mean of the base's seeds. groups: as `interval` has them."""
    if len(values_SN) == len(base_SN):
        return interval(values_SN - base_SN, groups)
    return interval(values_SN - base_SN.mean(axis=0), groups)


def interval(values_SN: Floats, groups: Sequence[str] | None = None) -> Interval:
    """The mean of S seeds' values for N items; both are drawn again.

    groups: what items share, so that they are drawn together (a cluster bootstrap); None: nothing.
    """
    tail = (1 - LEVEL) / 2
    if groups is None:
        by_seed = _weights(values_SN.shape[1], SEED) @ values_SN.T  # (RESAMPLES, S)
    else:
        _, place = np.unique(np.array(groups, str), return_inverse=True)
        weights = _weights(int(place.max()) + 1, SEED)
        sums = np.stack([np.bincount(place, row) for row in values_SN], axis=1)  # (G, S)
        by_seed = (weights @ sums) / (weights @ np.bincount(place))[:, None]
    drawn = _weights(len(values_SN), SEED + 1)
    low, high = np.quantile((by_seed * drawn).sum(axis=1), [tail, 1 - tail])
    return Interval(float(values_SN.mean()), float(low), float(high))


@lru_cache(maxsize=4)
def _weights(count: int, seed: int) -> Floats:
    """Shares of each of so many items in every resample: a resampled mean is a weighted one;
    (RESAMPLES, count). The same for whoever has as many items, so differences stay paired."""
    draws = np.random.default_rng(seed).multinomial(
        count, np.full(count, 1 / count), size=RESAMPLES
    )
    return np.asarray(draws / count)


def verdict(gain: Interval | None) -> str:
    """better, worse, or not told apart, at LEVEL."""
    if gain is None:
        return "baseline"
    if not gain.excludes_zero:
        return "not told apart"
    return "better" if gain.mean > 0 else "worse"
