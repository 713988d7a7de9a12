"""What a predictor says of pairs, before and after calibration.

In: a model's raw numbers. Out: category, magnitude, confidence, effective gap, interval. Invariant:
magnitude times confidence is the gap, both lie in [0, 1], and the interval holds the gap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from sp2dpo_ray.core.taxonomy import CATEGORIES
from sp2dpo_ray.distill.conformal import intervals

Floats = NDArray[np.float64]
SERVED_BY_PREDICTOR = "predictor/"  # and the digest of its files, as the model that served
UNFAMILIAR_NOTE = "unfamiliar"
UNFAMILIAR = 0.5  # share of unknown words above which a pair is unlike all that was learned


@dataclass(frozen=True, slots=True)
class Raw:
    """shares: (N, 6) of the categories. confidence, gap, low, high: (N,). unknown: (N,) share of
    words that training has not seen."""

    shares: Floats
    confidence: Floats
    gap: Floats
    low: Floats
    high: Floats
    unknown: Floats

    def __len__(self) -> int:
        return len(self.gap)

    @staticmethod
    def joined(pieces: Sequence[Raw]) -> Raw:
        columns = ([getattr(piece, field.name) for piece in pieces] for field in fields(Raw))
        return Raw(*map(np.concatenate, columns))

    @staticmethod
    def nothing() -> Raw:
        """Of no pair."""
        return Raw(np.zeros((0, len(CATEGORIES))), *(np.zeros(0) for _ in range(5)))


@dataclass(frozen=True, slots=True)
class Predictions:
    """category: (N,) codes. low and high: the calibrated interval of the gap. spread: its width
    before calibration, which tells pairs apart where that widens every interval to the whole."""

    category: NDArray[np.int8]
    shares: Floats
    magnitude: Floats
    confidence: Floats
    gap: Floats
    low: Floats
    high: Floats
    unknown: Floats
    spread: Floats

    def __len__(self) -> int:
        return len(self.gap)

    def notes(self) -> list[str]:
        """What to know of each prediction: its interval, and whether it is a guess."""
        notes = []
        for low, high, unknown in zip(self.low, self.high, self.unknown, strict=True):
            note = f"gap within [{low:.3f}, {high:.3f}]"
            if unknown > UNFAMILIAR:
                note += f", {UNFAMILIAR_NOTE}: {unknown:.0%} of the words are new"
            notes.append(note)
        return notes

    @property
    def width(self) -> Floats:
        return self.high - self.low


def calibrated(raw: Raw, moved_by: float) -> Predictions:
    """The predictions with intervals moved by the conformal radius."""
    gap = np.clip(raw.gap, 0, 1)
    low, high = intervals(raw.low, raw.high, moved_by, gap)
    # a gap is magnitude times confidence, so confidence cannot be less than it
    confidence = np.maximum(np.clip(raw.confidence, 0, 1), gap)
    magnitude = np.divide(gap, confidence, out=np.zeros_like(gap), where=confidence > 0)
    return Predictions(
        raw.shares.argmax(axis=1).astype(np.int8), raw.shares, magnitude, confidence, gap, low,
        high, raw.unknown, np.clip(raw.high - raw.low, 0, 1),
    )  # fmt: skip
