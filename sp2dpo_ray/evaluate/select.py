"""Choosing an arm and judging it, on different pairs.

In: for each arm the held-out margins of its seeds. Out: the chosen baseline and every arm against
it. Invariant: the half that chooses is never the half that reports, no prompt is in both, and both
are drawn by the prompts, so they are the same for every arm, seed and machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sp2dpo_ray.core.halves import tuning_half
from sp2dpo_ray.errors import ArtifactError
from sp2dpo_ray.evaluate.compare import ArmScore, Floats, accuracy_of, compare_arms


@dataclass(frozen=True, slots=True)
class ArmMargins:
    """Margins of an arm, in nats; (S, N) for S seeds. ids: of its N held-out pairs."""

    ids: list[str]
    margin_SN: Floats


@dataclass(frozen=True, slots=True)
class Selection:
    """tuning: accuracy of each arm on the half that chooses. chosen: the best of all arms there.
    baseline: the best global beta there, else the first arm. rows: every arm on the other half, the
    baseline first."""

    tuning: dict[str, float]
    chosen: str
    baseline: str
    rows: list[ArmScore]
    tuning_pairs: int


def select(
    arms: dict[str, ArmMargins], tuned: list[str], prompts: Sequence[str] | None = None
) -> Selection:
    """Choose on one half, compare on the other; ArtifactError where there are too few prompts, or
    arms were scored on other pairs. tuned: the arms of a global beta. prompts: of the pairs, in
    their order; None: all differ."""
    first = next(iter(arms.values()))
    for name, arm in arms.items():
        if arm.ids != first.ids:
            raise ArtifactError(
                f"arm {name} was scored on other held-out pairs than {next(iter(arms))}"
            )
    groups = np.array(first.ids if prompts is None else prompts, str)
    half = tuning_half(groups.tolist())
    if not half.any() or half.all():
        raise ArtifactError(
            f"a sweep needs two held-out prompts or more, to choose with and to report; there are "
            f"{len(set(groups))}. Raise data.eval_fraction or name data.eval_source"
        )
    tuning = {n: float(accuracy_of(arm.margin_SN[:, half]).mean()) for n, arm in arms.items()}
    mean_margin = {name: float(arm.margin_SN[:, half].mean()) for name, arm in arms.items()}

    def best(names: list[str]) -> str:
        # of arms with equal accuracy the one with the larger margin, then the first
        return max(names, key=lambda name: (tuning[name], mean_margin[name]))

    baseline = best(tuned) if tuned else next(iter(arms))
    report_ids = [name for name, mark in zip(first.ids, half, strict=True) if not mark]
    rows = compare_arms(
        {name: (report_ids, arm.margin_SN[:, ~half]) for name, arm in arms.items()},
        baseline,
        None if prompts is None else groups[~half].tolist(),
    )
    return Selection(tuning, best(list(arms)), baseline, rows, int(half.sum()))


def sentence(row: ArmScore, baseline: str) -> str:
    """The comparison in words, in points of held-out accuracy."""
    if row.gain is None:
        return f"{row.arm} is what the others are compared with"
    gain, low, high = (100 * value for value in (row.gain.mean, row.gain.low, row.gain.high))
    judged = {
        "better": f"is better than {baseline}",
        "worse": f"is worse than {baseline}",
    }.get(row.verdict, f"and {baseline} are not told apart")
    return f"{row.arm} {judged}: {gain:+.1f} points ({low:+.1f} to {high:+.1f})"
