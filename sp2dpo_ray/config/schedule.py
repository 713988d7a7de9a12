"""The sections of the schedule: the map from gap to beta, and the estimators.

In: plain values. Out: frozen models that give `core` its maps and estimators. Invariant: a value
that its shape or estimator would not read is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from sp2dpo_ray.config.section import Section
from sp2dpo_ray.core.schedule.columns import reserved_columns
from sp2dpo_ray.core.schedule.estimators import PRESETS, Estimator
from sp2dpo_ray.core.schedule.grid import Panel
from sp2dpo_ray.core.schedule.mapping import BETA_MAX, BETA_MIN, SHAPES, BetaMap
from sp2dpo_ray.core.schedule.recipe import Recipe
from sp2dpo_ray.core.taxonomy import Category

Share = Annotated[float, Field(ge=0, le=1)]
Beta = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]


def _is_set(section: Section, name: str) -> bool:
    """Whether a value is not the default; a resolved configuration names the defaults too."""
    return bool(getattr(section, name) != type(section).model_fields[name].default)


class EnvelopeSection(Section):
    """An envelope of one category; what is not given is that of all."""

    beta_min: Beta | None = None
    """Beta of this category's pairs without a gap."""
    beta_max: Beta | None = None
    """Beta of this category's pairs with a gap of 1."""


class GateSection(Section):
    """Confidence up to `low` gives beta_min, from `high` on the map counts in full."""

    low: Share
    """Up to this confidence a pair gets beta_min."""
    high: Share
    """From this confidence on the map counts in full; linear between."""


class MappingSection(Section):
    shape: Literal["linear", "power", "logistic", "quantile"] = "linear"
    """The map from effective gap to beta: `linear` is Eq. 15, the others contain it."""
    beta_min: Beta = BETA_MIN
    """Beta of a pair without a gap: the envelope's lower end."""
    beta_max: Beta = BETA_MAX
    """Beta of a pair with a gap of 1: the envelope's upper end."""
    exponent: float = Field(1.0, gt=0)
    """Of `power`: gap ** exponent; above 1 lowers the middle."""
    steepness: float = Field(8.0, ge=0)
    """Of `logistic`: how sharp the step at `midpoint` is; 0 is linear."""
    midpoint: Share = 0.5
    """Of `logistic`: the gap at which the curve is steepest."""
    quantiles: int = Field(10, ge=2, le=1000)
    """Of `quantile`: pieces of the map from a gap to its rank among the training pairs."""
    blend: Share = 1.0
    """Of `quantile`: how much of the rank is mixed into the gap; 0 is linear."""
    categories: Mapping[Category, EnvelopeSection] = Field(default_factory=dict)
    """Envelopes of their own for categories, say a higher beta_max for Safety."""
    gate: GateSection | None = None
    """Lets only confident pairs rise above beta_min."""

    @model_validator(mode="after")
    def _consistent(self) -> MappingSection:
        for shape, row in SHAPES.items():
            foreign = [name for name in row.keys if shape != self.shape and _is_set(self, name)]
            if foreign:
                raise ValueError(f"{foreign} belongs to shape {shape}, this one is {self.shape}")
        self.map()  # its own rules
        return self

    def map(self) -> BetaMap:
        """The map, not yet fitted."""
        own = {name: getattr(self, name) for name in SHAPES[self.shape].keys}
        return BetaMap(
            shape=self.shape,
            beta_min=self.beta_min,
            beta_max=self.beta_max,
            categories=tuple(
                (
                    str(name),
                    self.beta_min if part.beta_min is None else part.beta_min,
                    self.beta_max if part.beta_max is None else part.beta_max,
                )
                for name, part in sorted(self.categories.items())
            ),
            gate=(self.gate.low, self.gate.high) if self.gate else (0.0, 0.0),
            **own,
        )


class EstimatorSection(Section):
    """An estimator of your own; its betas are the column `beta_<name>` of the diagnostics."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    """Lower-case letters, digits and underscores."""
    title: str = ""
    """What card and page call it."""
    over_prompts: Literal["median", "mean", "weighted"] = "median"
    """How one teacher's gaps become one; `weighted` by gamma (Eq. 41)."""
    over_teachers: Literal["mean", "median", "trimmed", "huber", "weighted"] = "mean"
    """How the teachers' betas become one; `weighted` by alpha (Eq. 42)."""
    joint: Literal["pooled", "debiased"] | None = None
    """All calls at once instead of prompts, then teachers (Eqs. 43, 44)."""
    damping: Literal["none", "exp", "rational"] = "none"
    """Lowers a teacher's gap where its prompts disagree (Eqs. 39, 40)."""
    damping_lambda: float = Field(4.0, ge=0)
    """Strength of the damping."""
    trim: float = Field(0.25, ge=0, lt=0.5)
    """Of `trimmed`: share of the teachers that is cut from each side."""
    huber_delta: float = Field(0.1, gt=0)
    """Of `huber`: where the loss turns linear, as a share of the envelope's width."""
    mapping: MappingSection | None = None
    """A map of its own; else the schedule's."""

    @model_validator(mode="after")
    def _consistent(self) -> EstimatorSection:
        for name, used in (
            ("damping_lambda", self.damping != "none"),
            ("trim", self.over_teachers == "trimmed"),
            ("huber_delta", self.over_teachers == "huber"),
        ):
            if not used and _is_set(self, name):
                raise ValueError(f"{name} is given, but nothing here reads it")
        self.estimator()  # its own rules
        return self

    def estimator(self) -> Estimator:
        values: dict[str, Any] = {name: getattr(self, name) for name in type(self).model_fields}
        return Estimator(**values | {"mapping": self.mapping.map() if self.mapping else None})


class EnsembleSection(Section):
    over_prompts: Literal["median"] = "median"
    """How the variants of one teacher become one gap (Eq. 16). The schedule's own columns are
    always the paper's; other estimators stand beside them, see `estimators`."""
    over_teachers: Literal["mean"] = "mean"
    """How the teachers' betas become one (Eq. 17)."""
    estimators: tuple[str | EstimatorSection, ...] = tuple(PRESETS)
    """Further estimators: names of the table, or own ones; each is a column, and an arm
    `column:beta_<name>`."""
    teacher_weights: Literal["consistency"] | dict[str, Weight] = "consistency"
    """alpha of Eq. 42 by teacher; `consistency` takes how far its answers survive rewording."""
    prompt_weights: Literal["consistency"] | dict[str, Weight] = "consistency"
    """gamma of Eq. 41 by variant; `consistency` takes how well the other wordings agree."""
    ridge: float = Field(1.0, gt=0)
    """Penalty on the offsets of Eq. 44."""

    @model_validator(mode="after")
    def _known(self) -> EnsembleSection:
        unknown = [e for e in self.estimators if isinstance(e, str) and e not in PRESETS]
        if unknown:
            raise ValueError(
                f"estimators {unknown} are unknown; the table has {list(PRESETS)}, an own one is "
                "{name: ..., over_teachers: ...}"
            )
        names = [e if isinstance(e, str) else e.name for e in self.estimators]
        if len(set(names)) < len(names):
            raise ValueError(f"estimators: names must differ, got {names}")
        return self

    def recipe(self, panel: Panel, mapping: MappingSection) -> Recipe:
        """The whole recipe; ValueError where it does not fit the panel."""
        estimators = tuple(
            PRESETS[row] if isinstance(row, str) else row.estimator() for row in self.estimators
        )
        taken = [row.name for row in estimators if row.column in reserved_columns(panel)]
        if taken:
            raise ValueError(f"ensemble.estimators: the names {taken} are taken by other columns")
        return Recipe(
            panel,
            mapping.map(),
            estimators,
            alpha=_weights("teacher_weights", self.teacher_weights, panel.teachers),
            gamma=_weights("prompt_weights", self.prompt_weights, panel.variants),
            ridge=self.ridge,
        )


def _weights(
    key: str, given: str | dict[str, float], names: tuple[str, ...]
) -> dict[str, float] | None:
    if isinstance(given, str):
        return None
    if set(given) != set(names) or not any(given.values()):
        raise ValueError(
            f"ensemble.{key} must give {list(names)} a weight each, one above 0 at least, "
            f"got {given}"
        )
    return {name: given[name] for name in names}
