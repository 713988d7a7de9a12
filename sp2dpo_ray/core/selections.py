"""Which pairs an arm trains on, and in which order: selections and curricula.

In: what is known of the pairs. Out: the places of the pairs that are kept, in the order of
training where the method has one. Invariant: a selection is a row of SELECTIONS, ties go by the
pairs' ids, and a row says how its rule was verified.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sp2dpo_ray.core.hashing import uniform_draws
from sp2dpo_ray.core.methods import Verified
from sp2dpo_ray.core.schedule.ensemble import Floats

LOWEST = -2.0  # where dual-margin's probabilities begin
FEWEST_ABOVE = 30  # pairs that must lie above where they end
DRAW_SEED = 7


class Evidence(Protocol):
    """What is known of N training pairs; each is computed when a selection asks for it."""

    ids: list[str]

    def margin(self) -> Floats:
        """The external margin: of the panel, or of the data's own scores; (N,)."""

    def reference_gap(self) -> Floats:
        """Log-probability per token of chosen less rejected before training, nats; (N,)."""

    def implicit(self) -> Floats:
        """The margin under a student that was trained on a drawn part of the pairs, nats; (N,)."""

    def difficulty(self) -> Floats:
        """Mean loss under students that did not train on the pair; (N,)."""


@dataclass(frozen=True, slots=True)
class Selection:
    """rank: the larger, the sooner a pair is kept. share: of the pairs, where the arm names none.
    ordered: train in the order of the rank, once through without shuffling. teaches: pairs that are
    not kept are trained on too, but to write the chosen response (supervised)."""

    title: str
    source: str
    verified: Verified
    share: float
    rank: Callable[[Evidence], Floats]
    ordered: bool = False
    teaches: bool = False

    @property
    def flag(self) -> str:
        """What whoever trains with it should know; '' if nothing."""
        if self.verified is not Verified.SECONDARY:
            return ""
        return f"{self.title}: shares or cut-offs were found {self.verified}; check them"


@dataclass(frozen=True, slots=True)
class Chosen:
    """places: of the pairs to train on, in order if the selection has one. supervised: which of
    them learn the chosen response instead of the preference."""

    places: NDArray[np.int64]
    supervised: NDArray[np.bool_]


def choose(selection: Selection, share: float, evidence: Evidence) -> Chosen:
    """Apply a selection to all pairs of the evidence."""
    ids = evidence.ids
    rank = selection.rank(evidence)
    order = np.lexsort((np.array(ids), -rank))  # ties by id, so that row order does not matter
    kept = max(1, round(share * len(ids)))
    places = order if selection.teaches else order[:kept]
    supervised = np.arange(len(places)) >= kept
    if not selection.ordered:
        places, supervised = np.sort(places), np.zeros(len(places), dtype=bool)
    return Chosen(places.astype(np.int64), supervised)


def fused(external_N: Floats, implicit_N: Floats) -> Floats:
    """Dual-margin's probability that a pair is good: both margins as probabilities, multiplied and
    normalised with their complements (BeeS, arXiv:2502.14560); (N,)."""
    one, other = _probability(external_N), _probability(implicit_N)
    good, bad = one * other, (1 - one) * (1 - other)
    total = good + bad
    return np.divide(good, total, out=np.full_like(total, 0.5), where=total > 0)


def _probability(margin_N: Floats) -> Floats:
    """Linear from LOWEST to the point above which margins are few."""
    rising = np.sort(margin_N)
    few = min(FEWEST_ABOVE, len(rising))
    highest = max(float(rising[-few]), LOWEST + 1e-9)
    return np.asarray((np.clip(margin_N, LOWEST, highest) - LOWEST) / (highest - LOWEST))


def potential(external_N: Floats, gap_N: Floats, k: float = 1.0) -> Floats:
    """The alignment potential: how much better the external margin is than what the student's own
    log-probabilities already tell (arXiv:2503.01864); (N,)."""
    return _standard(external_N) - k * _standard(np.abs(gap_N))


def _standard(values: Floats) -> Floats:
    deviation = float(values.std())
    return np.asarray((values - values.mean()) / (deviation if deviation > 0 else 1.0))


def _drawn(evidence: Evidence) -> Floats:
    return -uniform_draws(evidence.ids, seed=DRAW_SEED, purpose="random-selection")


SELECTIONS: dict[str, Selection] = {
    "random": Selection("control: a part drawn by the pairs' ids", "", Verified.OURS, 0.5, _drawn),
    "easy-first": Selection(
        "control: all pairs, large margins first", "", Verified.OURS, 1.0,
        lambda e: e.margin(), ordered=True),
    "selective": Selection(
        "Selective DPO: the easiest pairs, easiest first", "arXiv:2502.09650", Verified.CODE, 0.5,
        lambda e: -e.difficulty(), ordered=True),
    "dual-margin": Selection(
        "dual-margin (BeeS): external and implicit margin fused", "arXiv:2502.14560",
        Verified.TEXT, 0.1, lambda e: fused(e.margin(), e.implicit())),
    "alignment-potential": Selection(
        "alignment potential", "arXiv:2503.01864", Verified.CODE, 0.4,
        lambda e: potential(e.margin(), e.reference_gap())),
    "implicit-gap": Selection(
        "the smallest implicit gaps", "arXiv:2508.04149", Verified.TEXT, 0.1,
        lambda e: -np.abs(e.implicit())),
    "mixdpo": Selection(
        "MixDPO: easy to hard, hard pairs supervised", "arXiv:2602.00954", Verified.SECONDARY, 0.67,
        lambda e: e.margin(), ordered=True, teaches=True),
}  # fmt: skip
