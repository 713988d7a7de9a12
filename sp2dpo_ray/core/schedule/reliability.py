"""What is estimated over all pairs: reliability weights and the offsets of Eq. 44.

In: gaps of the training pairs. Out: a `Fit`. Invariant: teachers and prompts are taken in the order
of their names and results are rounded, so that neither the panel's order nor the way in which a
processor adds up changes a published number.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from sp2dpo_ray.core.schedule.ensemble import Floats
from sp2dpo_ray.core.schedule.estimators import Fit

WEIGHT_DIGITS = 6
OFFSET_DIGITS = 12


@dataclass(frozen=True, slots=True)
class Sums:
    """Sums over pairs that the fit needs, so that gaps may come in chunks.

    whole: pairs with every call; total_C, cross_CC: their sums and products over C = J K calls.
    normal_CC, right_C: of the additive model after the pairs' own terms are eliminated.
    """

    whole: int
    total_C: Floats
    cross_CC: Floats
    normal_CC: Floats
    right_C: Floats

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            self.whole + other.whole,
            self.total_C + other.total_C,
            self.cross_CC + other.cross_CC,
            self.normal_CC + other.normal_CC,
            self.right_C + other.right_C,
        )

    @classmethod
    def of(cls, gap_NC: Floats) -> Sums:
        there = ~np.isnan(gap_NC)
        gap = np.where(there, gap_NC, 0.0)
        whole = gap[there.all(axis=1)]
        weight = there.astype(np.float64)
        count = np.maximum(weight.sum(axis=1), 1.0)
        # g_i = mean of y_ic - offset_c over its calls; put in, this is (diag(n) - W^T W / n_i) o
        share = weight / count[:, None]
        return cls(
            len(whole),
            whole.sum(axis=0),
            whole.T @ whole,
            np.diag(weight.sum(axis=0)) - share.T @ weight,
            (gap - share * gap.sum(axis=1)[:, None]).sum(axis=0),
        )


def fit_reliability(
    chunks: Iterable[Floats],
    teachers: tuple[str, ...],
    variants: tuple[str, ...],
    *,
    alpha: dict[str, float] | None = None,
    gamma: dict[str, float] | None = None,
    ridge: float = 1.0,
) -> Fit:
    """Weights and offsets from gaps (N, J, K), NaN where a call was left out on purpose.

    alpha, gamma: given weights of teachers and prompts; else they come from self-consistency.
    ridge: strength rho of the penalty rho (sum_j b_j^2 + sum_k d_k^2) of Eq. 44.
    """
    by_teacher, by_variant = np.argsort(teachers), np.argsort(variants)
    num_teachers, num_variants = len(teachers), len(variants)
    num_calls = num_teachers * num_variants
    zero = np.zeros((num_calls, num_calls))
    sums = Sums(0, zero[0], zero, zero, zero[0])
    for gap in chunks:
        named = gap[:, by_teacher][:, :, by_variant]
        sums = sums + Sums.of(named.reshape(len(gap), num_calls))
    covariance = _covariance(sums).reshape(num_teachers, num_variants, num_teachers, num_variants)
    alpha_J = _unsorted(_rounded(_teacher_consistency(covariance), WEIGHT_DIGITS), by_teacher)
    gamma_K = _unsorted(_rounded(_prompt_consistency(covariance), WEIGHT_DIGITS), by_variant)
    teacher_J, prompt_K = _offsets(sums, num_teachers, num_variants, ridge)
    return Fit(
        gamma_K if gamma is None else np.array([gamma[name] for name in variants], np.float64),
        alpha_J if alpha is None else np.array([alpha[name] for name in teachers], np.float64),
        _unsorted(_rounded(teacher_J, OFFSET_DIGITS), by_teacher),
        _unsorted(_rounded(prompt_K, OFFSET_DIGITS), by_variant),
    )


def _covariance(sums: Sums) -> Floats:
    if sums.whole < 2:
        return np.zeros_like(sums.cross_CC)
    mean = sums.total_C / sums.whole
    return np.asarray(sums.cross_CC / sums.whole - np.outer(mean, mean))


def _teacher_consistency(covariance_JKJK: Floats) -> Floats:
    """Intraclass correlation ICC(3,1) of each teacher over the prompts, not below 0; (J,).

    Mean covariance of two prompts over the mean variance of one: the share of a single answer's
    variance that a differently worded question reproduces. A teacher that always says the same
    gets 0, as one does whose answers follow the wording alone.
    """
    num_teachers, num_variants = covariance_JKJK.shape[:2]
    if num_variants == 1:
        return np.ones(num_teachers)
    weights = np.zeros(num_teachers)
    for j in range(num_teachers):
        own = covariance_JKJK[j, :, j, :]
        variance = own.trace() / num_variants
        shared = (own.sum() - own.trace()) / (num_variants * (num_variants - 1))
        weights[j] = max(shared / variance, 0.0) if variance > 1e-12 else 0.0
    return weights if weights.any() else np.ones(num_teachers)


def _prompt_consistency(covariance_JKJK: Floats) -> Floats:
    """Correlation of each prompt with the sum of the others, mean over teachers, from 0 up; (K,).

    The item-rest correlation: how well the other wordings agree with this one.
    """
    num_teachers, num_variants = covariance_JKJK.shape[:2]
    if num_variants == 1:
        return np.ones(1)
    found = np.zeros((num_teachers, num_variants))
    for j in range(num_teachers):
        own = covariance_JKJK[j, :, j, :]
        for k in range(num_variants):
            rest = np.arange(num_variants) != k
            spread = own[k, k] * own[np.ix_(rest, rest)].sum()
            found[j, k] = own[k, rest].sum() / np.sqrt(spread) if spread > 1e-24 else 0.0
    weights = np.maximum(found.mean(axis=0), 0.0)
    return weights if weights.any() else np.ones(num_variants)


def _offsets(
    sums: Sums, num_teachers: int, num_variants: int, ridge: float
) -> tuple[Floats, Floats]:
    """b_j and d_k of Eq. 44 by ridge regression, the pairs' terms g_i free; (J,), (K,)."""
    design = np.concatenate(
        [
            np.repeat(np.eye(num_teachers), num_variants, axis=0),
            np.tile(np.eye(num_variants), (num_teachers, 1)),
        ],
        axis=1,
    )
    normal = design.T @ sums.normal_CC @ design + ridge * np.eye(design.shape[1])
    solved = np.linalg.solve(normal, design.T @ sums.right_C)
    return solved[:num_teachers], solved[num_teachers:]


def _rounded(values: Floats, digits: int) -> Floats:
    return np.round(values, digits) + 0.0  # -0.0 becomes 0.0


def _unsorted(values: Floats, order: np.ndarray) -> Floats:
    back = np.empty_like(values)
    back[order] = values
    return back
