"""The recipe of a schedule: panel, map, estimators and their weights; and what was fitted for it.

In: the configuration's values, or the JSON of a manifest. Out: a `Recipe`, and its `Fit` on the
training pairs. Invariant: the JSON of both is all that is needed to compute every beta again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from sp2dpo_ray.core.schedule import ensemble
from sp2dpo_ray.core.schedule.ensemble import Floats
from sp2dpo_ray.core.schedule.estimators import PRESETS, Estimator, Fit, fitted
from sp2dpo_ray.core.schedule.grid import Grid, Panel, predicted
from sp2dpo_ray.core.schedule.mapping import BetaMap
from sp2dpo_ray.core.schedule.reliability import fit_reliability
from sp2dpo_ray.errors import ArtifactError

PAIRS_AT_ONCE = 1 << 15
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How betas come from annotations.

    alpha, gamma: given weights by teacher and by variant; None: from self-consistency.
    ridge: strength of the penalty of Eq. 44.
    """

    panel: Panel
    mapping: BetaMap = field(default_factory=BetaMap)
    estimators: tuple[Estimator, ...] = tuple(PRESETS.values())
    alpha: dict[str, float] | None = None
    gamma: dict[str, float] | None = None
    ridge: float = 1.0

    @property
    def json(self) -> Json:
        return asdict(self)

    @classmethod
    def from_json(cls, content: Json) -> Recipe:
        """The recipe that a manifest holds; ArtifactError where it is none."""
        try:
            rows = [
                {**row, "mapping": row["mapping"] and _map(row["mapping"])}
                for row in content["estimators"]
            ]
            return cls(
                Panel(tuple(content["panel"]["teachers"]), tuple(content["panel"]["variants"])),
                _map(content["mapping"]),
                tuple(Estimator(**row) for row in rows),
                content["alpha"],
                content["gamma"],
                content["ridge"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"the manifest's settings are no recipe: {error!r}") from error

    def fitted(self, grid: Grid) -> Fitted:
        """The recipe with everything that depends on all training pairs; whole pairs only.

        Weights and offsets are of the teachers: pairs that a predictor told have no part in them.
        A map's knots are of the gaps that it will see, and so of all pairs.
        """
        gaps = [ensemble.median_over_prompts(gap) for gap in gap_chunks(grid)]
        every = np.concatenate(gaps) if gaps else np.zeros((0, len(self.panel.teachers)))
        fit = fit_reliability(
            gap_chunks(grid, asked=True), self.panel.teachers, self.panel.variants,
            alpha=self.alpha, gamma=self.gamma, ridge=self.ridge,
        )  # fmt: skip
        return Fitted(
            replace(
                self,
                mapping=self.mapping.fitted(every),
                estimators=tuple(fitted(row, every) for row in self.estimators),
            ),
            fit,
        )


@dataclass(frozen=True, slots=True)
class Fitted:
    """A recipe whose maps have their knots, and the fit on the training pairs."""

    recipe: Recipe
    fit: Fit

    @property
    def json(self) -> Json:
        """What was fitted, by name."""
        panel, fit = self.recipe.panel, self.fit
        knots = {
            name: [list(point) for point in map_.knots]
            for name, map_ in (
                ("mapping", self.recipe.mapping),
                *((row.name, row.mapping) for row in self.recipe.estimators),
            )
            if map_ is not None and map_.knots
        }
        return {
            "teacher_weights": dict(zip(panel.teachers, fit.alpha_J.tolist(), strict=True)),
            "prompt_weights": dict(zip(panel.variants, fit.gamma_K.tolist(), strict=True)),
            "teacher_offsets": dict(
                zip(panel.teachers, fit.teacher_offset_J.tolist(), strict=True)
            ),
            "prompt_offsets": dict(zip(panel.variants, fit.prompt_offset_K.tolist(), strict=True)),
            **({"knots": knots} if knots else {}),
        }


def gap_chunks(grid: Grid, *, asked: bool = False) -> Iterator[Floats]:
    """Effective gaps (N, J, K), a piece of the pairs at a time; asked: of those alone that teachers
    were asked about."""
    for start in range(0, len(grid), PAIRS_AT_ONCE):
        part = grid.take(start, min(start + PAIRS_AT_ONCE, len(grid)))
        if asked:
            part = part.where(~predicted(part))
        yield ensemble.effective_gap(part.magnitude, part.confidence)


def _map(content: Json) -> BetaMap:
    pairs = {
        "knots": tuple((x, y) for x, y in content["knots"]),
        "categories": tuple((name, low, high) for name, low, high in content["categories"]),
        "gate": tuple(content["gate"]),
    }
    return BetaMap(**content | pairs)
