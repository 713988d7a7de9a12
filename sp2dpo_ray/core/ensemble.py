"""From calls to one temperature a pair: Eqs. 15 to 18 and 26 to 38 on arrays.

Axes: N pairs, J teachers, K prompt variants. Pure numpy in float64. Invariant: the order of
teachers, variants or pairs changes no number, to the last bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LinearMap:
    """f_beta of Eq. 15: the effective gap, clipped to [0, 1], onto [beta_min, beta_max]."""

    beta_min: float = 0.03
    beta_max: float = 0.3

    def __post_init__(self) -> None:
        if not 0 < self.beta_min <= self.beta_max:
            raise ValueError(
                "the envelope needs 0 < beta_min <= beta_max, "
                f"got [{self.beta_min}, {self.beta_max}]"
            )

    def __call__(self, gap: Floats) -> Floats:
        """Betas of gaps, any shape (Eqs. 15, 26, 30, 33)."""
        beta = self.beta_min + (self.beta_max - self.beta_min) * np.clip(gap, 0.0, 1.0)
        # 0.03 + (0.3 - 0.03) is more than 0.3 in float64; rounding must not leave the envelope
        return np.asarray(np.clip(beta, self.beta_min, self.beta_max))


def effective_gap(magnitude: Floats, confidence: Floats) -> Floats:
    """Magnitude times confidence, elementwise (Eq. 29)."""
    return magnitude * confidence


def median_over_prompts(gap_NJK: Floats) -> Floats:
    """Median over the K prompt variants (Eqs. 16, 31); (N, J, K) to (N, J). NaN: not asked."""
    return _median(gap_NJK)


def mean_over_teachers(beta_NJ: Floats) -> Floats:
    """Mean over the J teachers (Eqs. 17, 34); (N, J) to (N,)."""
    # summed in sorted order: float addition is not associative, a schedule must not care
    return np.asarray(np.sort(beta_NJ, axis=1).mean(axis=1))


def prompt_disagreement(gap_NJK: Floats) -> Floats:
    """Median absolute deviation over the prompt variants (Eq. 36); (N, J, K) to (N, J)."""
    return _median(np.abs(gap_NJK - _median(gap_NJK)[:, :, None]))


def _median(values_NJK: Floats) -> Floats:
    # the plain one is several times faster, and the full artifact has no gaps
    median = np.nanmedian if np.isnan(values_NJK).any() else np.median
    return np.asarray(median(values_NJK, axis=2))


def teacher_std(beta_NJ: Floats) -> Floats:
    """Standard deviation over the teachers (Eq. 37), population form; (N, J) to (N,)."""
    return np.asarray(np.sort(beta_NJ, axis=1).std(axis=1))


def teacher_mad(beta_NJ: Floats) -> Floats:
    """Median absolute deviation over the teachers (Eq. 38); (N, J) to (N,)."""
    centre = np.median(beta_NJ, axis=1, keepdims=True)
    return np.asarray(np.median(np.abs(beta_NJ - centre), axis=1))
