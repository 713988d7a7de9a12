"""What a share of the calls would have been worth: error of beta against calls and money.

In: pairs that the whole panel answered. Out: a row for each way of asking less: pairs at random or
by choice, with and without economy mode. Invariant: errors are over all pairs; one that is asked
about in full has none, one in economy mode what its missing calls would have moved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sp2dpo_ray.config.distill import DistillSection, MixSection
from sp2dpo_ray.core.economy import needed_first, settled
from sp2dpo_ray.core.schedule.mapping import BetaMap
from sp2dpo_ray.distill.choice import at_random, widest
from sp2dpo_ray.distill.predictor import Predictor, split_by, train
from sp2dpo_ray.distill.targets import Targets
from sp2dpo_ray.distill.texts import Texts

CHOICES = ("random", "active")
STOP = 0.005  # of economy mode, in beta
ROUNDS, FIRST = (MixSection.model_fields[name].default for name in ("rounds", "first"))
Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Point:
    """error: mean absolute, of beta, over all pairs. usd: None without prices."""

    share: float
    choice: str
    economy: bool
    calls: int
    usd: float | None
    error: float


@dataclass(frozen=True, slots=True)
class Panel:
    """gaps: (N, J, K) effective gap of each call. usd_per_call: mean over what was paid."""

    texts: Texts
    targets: Targets
    gaps: NDArray[np.float64]
    usd_per_call: float | None = None

    @property
    def ids(self) -> list[str]:
        names: list[str] = self.targets.ids.to_pylist()
        return names

    @property
    def calls_a_pair(self) -> int:
        return int(self.gaps.shape[1] * self.gaps.shape[2])


def frontier(
    panel: Panel, section: DistillSection, beta_of: BetaMap, shares: Sequence[float]
) -> list[Point]:
    """Points for every share at which a predictor can be trained; the whole panel's last."""
    made, error_of_economy = economy(panel.gaps, beta_of)
    true = beta_of(np.median(panel.gaps, axis=2)).mean(axis=1)
    found = []
    for share in shares:
        if _first_count(panel, share) < section.least_pairs:
            continue  # `left_out` tells it
        for choice in CHOICES:
            asked = _asked(panel, section, share, choice)
            predictor = _learned(panel, section, asked, share)
            rest = np.setdiff1d(np.arange(len(panel.targets)), asked)
            told = predictor.predict(panel.texts.take(rest)).gap
            wrong = np.abs(beta_of(told) - true[rest]).sum()
            found += _points(panel, asked, wrong, made, error_of_economy, share, choice)
    everyone = np.arange(len(panel.targets))
    return found + _points(panel, everyone, 0.0, made, error_of_economy, 1.0, "all")


def left_out(panel: Panel, section: DistillSection, shares: Sequence[float]) -> list[str]:
    """A line for each share of which nothing can be learned."""
    counts = {share: _first_count(panel, share) for share in shares}
    return [
        f"{share:.0%} is left out: its first round would be {count:,} of {len(panel.targets):,} "
        f"pairs, and distill.least_pairs asks for {section.least_pairs:,}."
        for share, count in counts.items()
        if count < section.least_pairs
    ]


def _points(
    panel: Panel, asked: Rows, wrong: float, made: Rows, error_of_economy: NDArray[np.float64],
    share: float, choice: str,
) -> list[Point]:  # fmt: skip
    count = len(panel.targets)
    points = []
    for thrifty in (False, True):
        calls = int(made[asked].sum()) if thrifty else len(asked) * panel.calls_a_pair
        error = wrong + (error_of_economy[asked].sum() if thrifty else 0.0)
        usd = None if panel.usd_per_call is None else calls * panel.usd_per_call
        points.append(Point(share, choice, thrifty, calls, usd, float(error / count)))
    return points


def _learned(panel: Panel, section: DistillSection, asked: Rows, share: float) -> Predictor:
    fair = np.isin(asked, _first(panel, section, share))
    ids = panel.ids
    keys = [ids[row] for row in asked]
    split = split_by(keys, section, fair)
    origin = {"teachers": [], "prompts": "", "categories": [], "apart": "pair"}
    return train(panel.texts.take(asked), panel.targets.take(asked), split, section, origin)


def _first(panel: Panel, section: DistillSection, share: float) -> Rows:
    return at_random(panel.ids, _first_count(panel, share), section.seed)


def _first_count(panel: Panel, share: float) -> int:
    return round(FIRST * share * len(panel.targets))


def _asked(panel: Panel, section: DistillSection, share: float, choice: str) -> Rows:
    """The rows that all rounds of `annotate.mix` would ask about."""
    whole = round(share * len(panel.targets))
    if choice == "random":
        return at_random(panel.ids, whole, section.seed)
    ids = panel.ids
    asked = _first(panel, section, share)
    for left in range(ROUNDS - 1, 0, -1):
        predictor = _learned(panel, section, asked, share)
        rest = np.setdiff1d(np.arange(len(panel.targets)), asked)
        found = predictor.predict(panel.texts.take(rest))
        count = -(-(whole - len(asked)) // left)
        picked = widest([ids[row] for row in rest], found, count)
        asked = np.sort(np.concatenate([asked, rest[picked]]))
    return asked


def economy(
    gaps: NDArray[np.float64], beta_of: BetaMap, stop: float = STOP
) -> tuple[Rows, NDArray[np.float64]]:
    """Calls that economy mode makes of each pair, and what its betas are off by; (N,) each."""
    pairs, _, variants = gaps.shape
    made, off = np.zeros(pairs, np.int64), np.zeros(pairs)
    for row, teachers in enumerate(gaps):
        kept = []
        for values in teachers:
            asked = min(needed_first(variants), variants)
            while asked < variants and not settled(list(values[:asked]), variants, beta_of, stop):
                asked += 1
            made[row] += asked
            kept.append(float(np.median(values[:asked])))
        true = beta_of(np.median(teachers, axis=1)).mean()
        off[row] = abs(float(beta_of(np.array(kept)).mean() - true))
    return made, off


def markdown(points: Sequence[Point], remarks: Sequence[str] = ()) -> str:
    """A table: one line a share and choice, with and without economy mode; remarks below it."""
    lines = [
        "| pairs asked | choice | economy mode | calls | USD | error of beta |",
        "|---:|---|---|---:|---:|---:|",
    ]
    lines += [
        f"| {point.share:.0%} | {point.choice} | {'yes' if point.economy else 'no'} | "
        f"{point.calls:,} | {'' if point.usd is None else format(point.usd, ',.2f')} | "
        f"{point.error:.4f} |"
        for point in points
    ]
    return "\n".join([*lines, *(f"\n{remark}" for remark in remarks)]) + "\n"
