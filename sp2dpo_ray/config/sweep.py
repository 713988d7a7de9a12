"""The section of sweeps: arms, seeds, and a search over the maps from gap to beta.

In: plain values. Out: frozen models. Invariant: a key of the space that nothing would read is
refused before a trial starts.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from sp2dpo_ray.config.section import Section
from sp2dpo_ray.core.derived import MAP_KEYS
from sp2dpo_ray.core.schedule.estimators import PRESETS
from sp2dpo_ray.core.schedule.mapping import SHAPES

Value = float | int | str
JOINT = frozenset(row.name for row in PRESETS.values() if row.joint)


class RangeSection(Section):
    """Numbers from low to high."""

    low: float
    """Least value."""
    high: float
    """Greatest value."""
    log: bool = False
    """Draw the logarithm uniformly, as is right for betas."""

    @model_validator(mode="after")
    def _rising(self) -> RangeSection:
        if not (self.low < self.high and math.isfinite(self.high)):
            raise ValueError(f"low must be below high, got {self.low:g} and {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithm needs low above 0, got {self.low:g}")
        return self


class ChoiceSection(Section):
    """One of several values."""

    choices: Annotated[tuple[Value, ...], Field(min_length=1)]
    """The values."""


class HalvingSection(Section):
    """Successive halving (ASHA): trials that are behind after a share of the steps are stopped."""

    grace: float = Field(0.25, gt=0, lt=1)
    """Share of the steps that every trial gets."""
    factor: int = Field(3, ge=2)
    """Of so many trials one goes on at each look."""


class SearchSection(Section):
    """Trials over maps and estimators, each an arm `map:...`; the objective is held-out accuracy on
    the tuning half."""

    space: Annotated[dict[str, RangeSection | ChoiceSection], Field(min_length=1)]
    """What to vary: keys of `mapping` (beta_min, beta_max, shape, exponent, ...), gate_low,
    gate_high, `<Category>.beta_max`, damping, damping_lambda, estimator."""
    trials: PositiveInt = 16
    """How many points are tried."""
    sampler: Literal["tpe", "random"] = "tpe"
    """Optuna's sampler."""
    halving: HalvingSection | None = None
    seed: int = 0
    """Of the sampler."""

    @model_validator(mode="after")
    def _read(self) -> SearchSection:
        unknown = [key for key in self.space if key not in MAP_KEYS]
        if unknown:
            raise ValueError(f"space: {unknown} are unknown; there are {sorted(MAP_KEYS)}")
        for shape, row in SHAPES.items():
            for name in row.keys:
                if name in self.space and shape not in self.choices("shape"):
                    raise ValueError(
                        f"space: {name} belongs to shape {shape}; add "
                        f"shape: {{choices: [linear, {shape}]}}"
                    )
        if "damping_lambda" in self.space and set(self.choices("damping")) <= {"none"}:
            raise ValueError("space: damping_lambda needs damping: {choices: [none, exp]}")
        joint = [name for name in self.choices("estimator") if name in JOINT]
        if joint and set(self.choices("damping")) - {"none"}:
            raise ValueError(
                f"space: estimators {joint} use all calls at once and know no damping; search them "
                "apart"
            )
        low, high = self.space.get("beta_min"), self.space.get("beta_max")
        ranges = isinstance(low, RangeSection) and isinstance(high, RangeSection)
        if ranges and low.high > high.low:  # type: ignore[union-attr]
            raise ValueError("space: beta_min must end where beta_max begins, or below")
        return self

    def choices(self, key: str) -> tuple[Value, ...]:
        """The values that a choice may take; () for what is no choice of the space."""
        part = self.space.get(key)
        return part.choices if isinstance(part, ChoiceSection) else ()


class SweepSection(Section):
    arms: tuple[str, ...] = ("jmamp", "dpo:0.1", "random")
    """Arms that `run` and `sweep` train and the report compares."""
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Train each arm once with every seed; none: once, with `train.seed`."""
    at_once: int | None = Field(None, ge=1)
    """Most arms that `sweep` trains at once; null: as many as the cluster has room for."""
    search: SearchSection | None = None
    """Trials of other maps beside the arms."""

    @model_validator(mode="after")
    def _one_way_to_say_it(self) -> SweepSection:
        if self.seeds and any("@" in arm for arm in self.arms):
            raise ValueError("name seeds in sweep.seeds or behind the arms, not in both places")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Every arm with every seed."""
        if not self.seeds:
            return self.arms
        return tuple(f"{arm}@{seed}" for arm in self.arms for seed in self.seeds)
