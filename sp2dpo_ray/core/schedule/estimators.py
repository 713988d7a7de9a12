"""The estimators of beta beside the default: each a row of a table (paper sections C.4, C.5).

In: the calls' signals, a map, what was fitted on the training pairs. Out: one beta a pair.
Invariant: an estimator is data; whatever differs between two of them is a field.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from sp2dpo_ray.core.schedule import ensemble
from sp2dpo_ray.core.schedule.ensemble import DAMPING, Floats
from sp2dpo_ray.core.schedule.mapping import BetaMap
from sp2dpo_ray.core.taxonomy import Codes, majority_vote

OVER_PROMPTS = ("median", "mean", "weighted")
OVER_TEACHERS = ("mean", "median", "trimmed", "huber", "weighted")
JOINT = ("pooled", "debiased")


@dataclass(frozen=True, slots=True)
class Estimator:
    """One way from nine calls to a beta.

    The hierarchy: over_prompts makes one gap a teacher, damping lowers it where the prompts
    disagree, the map makes it a beta, over_teachers makes one of those. `joint` replaces the
    hierarchy: one gap from all calls at once, then the map.

    damping_lambda: lambda of Eq. 40. trim: share cut from each side. huber_delta: where Huber's
    loss turns linear, as a share of the envelope's width. mapping: its own map, else the
    schedule's.
    """

    name: str
    title: str = ""
    over_prompts: str = "median"
    over_teachers: str = "mean"
    joint: str | None = None
    damping: str = "none"
    damping_lambda: float = 4.0
    trim: float = 0.25
    huber_delta: float = 0.1
    mapping: BetaMap | None = None

    def __post_init__(self) -> None:
        for field, names in (
            ("over_prompts", OVER_PROMPTS),
            ("over_teachers", OVER_TEACHERS),
            ("joint", (None, *JOINT)),
            ("damping", tuple(DAMPING)),
        ):
            if getattr(self, field) not in names:
                raise ValueError(f"{field} must be one of {names}, got {getattr(self, field)!r}")
        if not (self.damping_lambda >= 0 and 0 <= self.trim < 0.5 and self.huber_delta > 0):
            raise ValueError("needs damping_lambda >= 0, trim in [0, 0.5) and huber_delta > 0")
        if self.joint and (self.damping, self.over_prompts, self.over_teachers) != (
            "none", "median", "mean"
        ):  # fmt: skip
            raise ValueError(
                f"joint: {self.joint} uses all calls at once; over_prompts, over_teachers and "
                "damping belong to the hierarchy"
            )

    @property
    def column(self) -> str:
        return f"beta_{self.name}"


PRESETS: dict[str, Estimator] = {
    row.name: row
    for row in (
        Estimator("mean_prompts", "mean over prompts", over_prompts="mean"),
        Estimator("weighted_prompts", "prompts weighted by gamma (Eq. 41)",
                  over_prompts="weighted"),
        Estimator("median_teachers", "median over teachers (C.5.3)", over_teachers="median"),
        Estimator("trimmed_teachers", "trimmed mean over teachers (C.5.3)",
                  over_teachers="trimmed"),
        Estimator("huber_teachers", "Huber's location over teachers (C.5.3)",
                  over_teachers="huber"),
        Estimator("weighted_teachers", "teachers weighted by alpha (Eq. 42)",
                  over_teachers="weighted"),
        Estimator("pooled", "all calls at once, weighted (Eq. 43)", joint="pooled"),
        Estimator("debiased", "offsets of teachers and prompts removed (Eq. 44)",
                  joint="debiased"),
        Estimator("damped_exp", "exp(-lambda u) where prompts disagree (Eqs. 39, 40)",
                  damping="exp"),
        Estimator("damped_rational", "1 / (1 + lambda u) where prompts disagree (Eqs. 39, 40)",
                  damping="rational"),
    )
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fit:
    """What is estimated once on all training pairs and then held fixed.

    gamma_K, alpha_J: reliability weights of prompts and teachers (Eqs. 41, 42). teacher_offset_J,
    prompt_offset_K: b_j and d_k of Eq. 44, in units of the gap.
    """

    gamma_K: Floats
    alpha_J: Floats
    teacher_offset_J: Floats
    prompt_offset_K: Floats


@dataclass(frozen=True, slots=True)
class Signals:
    """The calls of N pairs: gaps, category codes (-1: not asked), confidences; all (N, J, K)."""

    gap: Floats
    category: Codes
    confidence: Floats

    def of_teachers(self) -> tuple[Codes, Floats]:
        """Category by vote and median confidence of each teacher; (N, J)."""
        votes = np.stack(
            [majority_vote(self.category[:, j])[0] for j in range(self.gap.shape[1])], axis=1
        )
        return votes, ensemble.median_over_prompts(self.confidence)


def estimate(estimator: Estimator, signals: Signals, fit: Fit, common: BetaMap) -> Floats:
    """The estimator's beta of each pair; (N,). common: the schedule's map, fitted."""
    beta_of = estimator.mapping or common
    if estimator.joint:
        return _joint(estimator, signals, fit, beta_of)
    gap_NJ = {
        "median": lambda: ensemble.median_over_prompts(signals.gap),
        "mean": lambda: ensemble.mean(signals.gap),
        "weighted": lambda: ensemble.weighted_mean(signals.gap, fit.gamma_K),
    }[estimator.over_prompts]()
    if estimator.damping != "none":
        disagreement = ensemble.prompt_disagreement(signals.gap)
        gap_NJ = gap_NJ * DAMPING[estimator.damping](disagreement, estimator.damping_lambda)
    aside = (None, None) if beta_of.of_gap_alone else signals.of_teachers()
    beta_NJ = beta_of(gap_NJ, *aside)
    low, high = beta_of.envelope
    return {
        "mean": lambda: ensemble.mean_over_teachers(beta_NJ),
        "median": lambda: ensemble.median_over_teachers(beta_NJ),
        "trimmed": lambda: ensemble.trimmed_mean(beta_NJ, estimator.trim),
        # of an envelope without width every location is the same
        "huber": lambda: ensemble.huber_location(
            beta_NJ, estimator.huber_delta * ((high - low) or 1.0)
        ),
        "weighted": lambda: ensemble.weighted_mean(beta_NJ, fit.alpha_J),
    }[estimator.over_teachers]()


def _joint(estimator: Estimator, signals: Signals, fit: Fit, beta_of: BetaMap) -> Floats:
    gap = signals.gap
    flat = (gap.shape[0], gap.shape[1] * gap.shape[2])
    if estimator.joint == "debiased":
        # given the offsets, least squares for g_i is the mean of what is left of its calls
        gap = gap - (fit.teacher_offset_J[:, None] + fit.prompt_offset_K)
        weights = np.ones(gap.shape[1:])
    else:
        weights = fit.alpha_J[:, None] * fit.gamma_K
    pooled = ensemble.weighted_mean(gap.reshape(flat), weights.reshape(-1))
    if beta_of.of_gap_alone:
        return beta_of(pooled)
    votes, _ = signals.of_teachers()
    confidence = ensemble.weighted_mean(signals.confidence.reshape(flat), weights.reshape(-1))
    return beta_of(pooled, majority_vote(votes)[0], confidence)


def fitted(estimator: Estimator, gaps: Floats) -> Estimator:
    """The estimator with its own map, if it has one, fitted on the training pairs' gaps."""
    if estimator.mapping is None:
        return estimator
    return replace(estimator, mapping=estimator.mapping.fitted(gaps))
