"""From an effective gap to a temperature: Eq. 15 and the families with few parameters around it.

In: gaps, and where the map asks for them the category and the confidence that go with them. Out:
betas. Invariant: beta never falls when a gap rises, and stays in the envelope of its category.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sp2dpo_ray.core.taxonomy import CATEGORIES, Codes

Floats = NDArray[np.float64]

BETA_MIN, BETA_MAX = 0.03, 0.3  # the paper's envelope, section A.6
FLAT = 1e-6  # below this steepness the logistic curve is a line to the last bits


@dataclass(frozen=True, slots=True)
class BetaMap:
    """f_beta: a shape from [0, 1] onto [0, 1], laid into an envelope, behind a gate.

    beta = low + (high - low) * shape(clip(gap, 0, 1)) * gate(confidence)

    exponent: of the power shape; 1 is Eq. 15.
    steepness, midpoint: of the logistic shape; 0 is Eq. 15.
    quantiles, blend: of the quantile shape: how many pieces, and how much of the rank is mixed into
        the gap; 0 is Eq. 15. `knots` are its (gap, rank) points, fitted on a schedule's own gaps.
    categories: (category, beta_min, beta_max) where a category has an envelope of its own.
    gate: confidences (low, high): up to `low` a pair gets its beta_min, from `high` on the shape
        counts in full, linear between; (0, 0) is open.
    """

    shape: str = "linear"
    beta_min: float = BETA_MIN
    beta_max: float = BETA_MAX
    exponent: float = 1.0
    steepness: float = 0.0
    midpoint: float = 0.5
    quantiles: int = 10
    blend: float = 1.0
    knots: tuple[tuple[float, float], ...] = ()
    categories: tuple[tuple[str, float, float], ...] = ()
    gate: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise ValueError(f"shape must be one of {list(SHAPES)}, got {self.shape!r}")
        for name, low, high in (("", self.beta_min, self.beta_max), *self.categories):
            if not 0 < low <= high < np.inf:
                raise ValueError(
                    f"the envelope {name and f'of {name} '}needs 0 < beta_min <= beta_max, "
                    f"got [{low}, {high}]"
                )
        if not (self.exponent > 0 and self.steepness >= 0 and 0 <= self.blend <= 1):
            raise ValueError("needs exponent > 0, steepness >= 0 and blend in [0, 1]")
        if not isinstance(self.quantiles, int) or self.quantiles < 2:
            raise ValueError(f"quantiles must be a whole number from 2, got {self.quantiles!r}")
        if not 0 <= self.gate[0] <= self.gate[1] <= 1:
            raise ValueError(f"the gate needs 0 <= low <= high <= 1, got {self.gate}")

    @property
    def envelope(self) -> tuple[float, float]:
        """Least and greatest beta over all categories."""
        lows = [low for _, low, _ in self.categories]
        highs = [high for _, _, high in self.categories]
        return min((self.beta_min, *lows)), max((self.beta_max, *highs))

    @property
    def of_gap_alone(self) -> bool:
        """Whether beta depends on nothing but the gap, and on no fit."""
        return not self.categories and self.gate == (0.0, 0.0) and self.shape != "quantile"

    def __call__(
        self, gap: Floats, category: Codes | None = None, confidence: Floats | None = None
    ) -> Floats:
        """Betas of gaps, any shape (Eqs. 15, 26, 30, 33). NaN stays NaN.

        category: codes of the taxonomy, -1 for none; confidence: in [0, 1]. Both like `gap`, and
        needed only where the map has envelopes of categories or a gate.
        """
        share = SHAPES[self.shape].curve(self, np.clip(gap, 0.0, 1.0))
        if self.gate != (0.0, 0.0):
            share = share * self._gate(_given(confidence, "a gate", "confidence"))
        if not self.categories:
            return _laid(share, self.beta_min, self.beta_max)
        codes = _given(category, "envelopes of categories", "category")
        low, high = self._envelopes()
        return _laid(share, low[codes], high[codes])

    def _gate(self, confidence: Floats) -> Floats:
        low, high = self.gate
        if low == high:
            return np.where(np.isnan(confidence), np.nan, np.where(confidence >= low, 1.0, 0.0))
        return np.clip((confidence - low) / (high - low), 0.0, 1.0)

    def _envelopes(self) -> tuple[Floats, Floats]:
        """Envelope by category code; code -1 reads the last entry, the common one."""
        bounds = {name: (low, high) for name, low, high in self.categories}
        rows = [bounds.get(str(name), (self.beta_min, self.beta_max)) for name in CATEGORIES]
        low, high = np.array([*rows, (self.beta_min, self.beta_max)]).T
        return low, high

    def fitted(self, gaps: Floats) -> BetaMap:
        """The map with its knots taken from `gaps` (any order); only the quantile shape has any."""
        if self.shape != "quantile":
            return self
        gaps = np.clip(gaps[~np.isnan(gaps)], 0.0, 1.0)
        if not gaps.size:
            return self
        rank = np.linspace(0.0, 1.0, self.quantiles + 1)
        points, inverse = np.unique(np.quantile(gaps, rank), return_inverse=True)
        # where many gaps are equal, several ranks fall on one point: it gets their mean
        ranks = np.bincount(inverse, weights=rank) / np.bincount(inverse)
        return replace(self, knots=tuple(zip(points.tolist(), ranks.tolist(), strict=True)))


def _given(values: NDArray[Any] | None, what: str, name: str) -> NDArray[Any]:
    if values is None:
        raise ValueError(f"a map with {what} needs the {name} of each gap")
    return values


def _laid(share: Floats, low: Floats | float, high: Floats | float) -> Floats:
    # 0.03 + (0.3 - 0.03) is more than 0.3 in float64; rounding must not leave the envelope
    return np.asarray(np.clip(low + (high - low) * share, low, high))


def _linear(_: BetaMap, gap: Floats) -> Floats:
    return gap


def _power(map_: BetaMap, gap: Floats) -> Floats:
    return np.asarray(gap**map_.exponent)


def _logistic(map_: BetaMap, gap: Floats) -> Floats:
    """The logistic curve, shifted and scaled so that 0 stays 0 and 1 stays 1."""
    if map_.steepness < FLAT:
        return gap

    # tanh(x / 2) is the logistic function up to a linear change that cancels here
    def curve(x: Floats | float) -> Floats:
        return np.asarray(np.tanh(0.5 * map_.steepness * (np.asarray(x) - map_.midpoint)))

    low, high = curve(0.0), curve(1.0)
    return np.asarray(np.clip((curve(gap) - low) / (high - low), 0.0, 1.0))


def _quantile(map_: BetaMap, gap: Floats) -> Floats:
    """Piecewise linear: the gap mixed with its rank among the gaps that the map was fitted on."""
    inner = [(x, y) for x, y in map_.knots if 0.0 < x < 1.0]
    points, ranks = np.array([(0.0, 0.0), *inner, (1.0, 1.0)]).T
    rank = np.interp(gap, points, ranks)
    return np.asarray((1.0 - map_.blend) * gap + map_.blend * rank)


@dataclass(frozen=True, slots=True)
class Shape:
    """A row of the table of shapes.

    curve: from the map and gaps in [0, 1] to [0, 1]; never falls. keys: fields of `BetaMap` that
    this shape alone reads. told: how the card tells them.
    """

    curve: Callable[[BetaMap, Floats], Floats]
    keys: tuple[str, ...] = ()
    told: str = ""

    def describe(self, map_: BetaMap) -> str:
        """The shape's parameters in words."""
        return self.told.format(**{key: getattr(map_, key) for key in self.keys})


SHAPES: dict[str, Shape] = {
    "linear": Shape(_linear),
    "power": Shape(_power, ("exponent",), " with exponent {exponent:g}"),
    "logistic": Shape(
        _logistic, ("steepness", "midpoint"), " with steepness {steepness:g} around {midpoint:g}"
    ),
    "quantile": Shape(
        _quantile, ("quantiles", "blend"), " in {quantiles} pieces, blended in at {blend:g}"
    ),
}
