"""Betas and weights that are computed from a published schedule, for the arms that name them.

In: a schedule's table and its recipe. Out: one beta a row, and the bounds that they keep.
Invariant: a function of the tables, the recipe and the numbers in the arm's name; what is fitted
anew (a map's knots, weights, a mean) is fitted on the training pairs, whoever asks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from sp2dpo_ray.core.hashing import uniform_draws
from sp2dpo_ray.core.schedule import ensemble
from sp2dpo_ray.core.schedule.columns import DEFAULT_BETA, ENSEMBLE, RANDOM_SEED
from sp2dpo_ray.core.schedule.ensemble import Floats
from sp2dpo_ray.core.schedule.estimators import Estimator, Signals, estimate
from sp2dpo_ray.core.schedule.grid import grid_of
from sp2dpo_ray.core.schedule.mapping import SHAPES, BetaMap
from sp2dpo_ray.core.schedule.recipe import Recipe
from sp2dpo_ray.core.taxonomy import CATEGORIES
from sp2dpo_ray.errors import ConfigError

Bounds = tuple[float, float]
LEAST = 1e-4  # of a beta that would be 0: the pair's gradient is next to nothing
SUREST = 0.999  # where a gap is turned into log-odds
OF_ESTIMATOR = ("damping", "damping_lambda", "over_prompts", "over_teachers", "joint")
OF_MAP = (
    "shape",
    "beta_min",
    "beta_max",
    *(key for shape in SHAPES.values() for key in shape.keys),
)
DEFAULT_ESTIMATOR = "jmamp"
ENVELOPES = tuple(f"{name}.{bound}" for name in CATEGORIES for bound in ("beta_min", "beta_max"))
MAP_KEYS = frozenset({*OF_MAP, *OF_ESTIMATOR, *ENVELOPES, "estimator", "gate_low", "gate_high"})


@dataclass(frozen=True, slots=True)
class Derived:
    """Betas in the order of the table's rows, and their bounds."""

    betas: Floats
    bounds: Bounds


def shuffled(table: pa.Table, training: pa.Table, recipe: Recipe) -> Derived:
    """The same betas on other pairs: each pair takes the beta of the pair at its drawn rank."""
    ids = table["prompt_id"].to_pylist()
    order = np.argsort(uniform_draws(ids, seed=RANDOM_SEED, purpose="beta_shuffled"))
    return Derived(_column(table)[order], recipe.mapping.envelope)


def matched(table: pa.Table, training: pa.Table, recipe: Recipe) -> Derived:
    """Every pair gets the schedule's mean: the same average enforcement without its shape."""
    mean = _column(training).mean()
    return Derived(np.full(table.num_rows, mean), recipe.mapping.envelope)


def geometric(table: pa.Table, training: pa.Table, recipe: Recipe, beta: float) -> Derived:
    """beta (2 p - 1), p the panel's belief that the label is right, (1 + confidence) / 2."""
    return Derived(np.maximum(beta * panel_confidence(table, recipe), LEAST), (LEAST, beta))


def distance(table: pa.Table, training: pa.Table, recipe: Recipe, beta: float) -> Derived:
    """beta (1 + |s_w - s_l|): the panel's effective gap in the place of the scores' difference."""
    return Derived(beta * (1 + panel_gap(table, recipe)), (beta, 2 * beta))


def remapped(
    table: pa.Table, training: pa.Table, recipe: Recipe, changes: tuple[tuple[str, Any], ...]
) -> Derived:
    """The schedule that another map or estimator would have given, from its own annotations."""
    changed, estimator = with_changes(recipe, dict(changes))
    grid = grid_of(table, recipe.panel, "schedule")
    fitted = changed.fitted(grid_of(training, recipe.panel, "schedule"))
    signals = Signals(
        ensemble.effective_gap(grid.magnitude, grid.confidence), grid.category, grid.confidence
    )
    betas = estimate(estimator, signals, fitted.fit, fitted.recipe.mapping)
    return Derived(betas, changed.mapping.envelope)


def with_changes(recipe: Recipe, changes: Mapping[str, Any]) -> tuple[Recipe, Estimator]:
    """The recipe with another map, and the estimator to use; ConfigError for what does not exist.

    Keys: those of the map, `<Category>.beta_min` and `.beta_max`, `gate_low`, `gate_high`,
    `estimator` (a name of the recipe, or jmamp), and what an estimator is made of.
    """
    known = {row.name: row for row in recipe.estimators} | {
        DEFAULT_ESTIMATOR: Estimator(DEFAULT_ESTIMATOR)
    }
    name = changes.get("estimator", DEFAULT_ESTIMATOR)
    if name not in known:
        raise ConfigError(f"arm map: estimator {name!r} is unknown; there are {sorted(known)}")
    _all_read(recipe.mapping, known[name], changes)
    own = {key: changes[key] for key in OF_ESTIMATOR if key in changes}
    plain = {key: changes[key] for key in OF_MAP if key in changes}
    try:
        estimator = replace(known[name], **own, mapping=None)
        base = replace(recipe.mapping, **plain)
        gate = changes.get("gate_low", base.gate[0]), changes.get("gate_high", base.gate[1])
        mapping = replace(base, gate=gate, categories=_envelopes(base, changes))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"arm map: {error}") from None
    return replace(recipe, mapping=mapping), estimator


def _all_read(base: BetaMap, estimator: Estimator, changes: Mapping[str, Any]) -> None:
    """ConfigError for a key that nothing reads: the arm would be another one under its name."""
    shape = changes.get("shape", base.shape)
    for other, row in SHAPES.items():
        for key in set(row.keys) & changes.keys() if other != shape else ():
            raise ConfigError(
                f"arm map: {key} belongs to the shape {other}, and the shape is {shape}; "
                f"add shape={other}, or leave it out"
            )
    if "damping_lambda" in changes and changes.get("damping", estimator.damping) == "none":
        raise ConfigError("arm map: damping_lambda without a damping; add damping=exp or rational")


def _envelopes(base: BetaMap, changes: Mapping[str, Any]) -> tuple[tuple[str, float, float], ...]:
    found = {name: (low, high) for name, low, high in base.categories}
    for key, value in changes.items():
        name, dot, bound = key.partition(".")
        if dot:
            low, high = found.get(name, (base.beta_min, base.beta_max))
            found[name] = (value, high) if bound == "beta_min" else (low, value)
    return tuple((name, low, high) for name, (low, high) in sorted(found.items()))


def panel_confidence(table: pa.Table, recipe: Recipe) -> Floats:
    """Mean over teachers of the median over prompts of confidence; (N,)."""
    grid = grid_of(table, recipe.panel, "schedule")
    return np.asarray(np.nanmean(ensemble.median_over_prompts(grid.confidence), axis=1))


def panel_gap(table: pa.Table, recipe: Recipe) -> Floats:
    """Mean over teachers of the ensembled effective gap, in [0, 1]; (N,)."""
    gaps = [
        table[f"effective_gap_{teacher}_{ENSEMBLE}"].to_numpy().astype(np.float64)
        for teacher in recipe.panel.teachers
    ]
    return np.asarray(np.nanmean(np.stack(gaps), axis=0))


def panel_margin(table: pa.Table, recipe: Recipe) -> Floats:
    """The panel's gap as a difference of rewards: log-odds of (1 + gap) / 2; (N,)."""
    gap = np.minimum(panel_gap(table, recipe), SUREST)
    return np.asarray(np.log1p(gap) - np.log1p(-gap))


def margin_weights(margin_N: Floats, options: Mapping[str, float]) -> Floats:
    """MADPO's weight of each pair from its reward margin (arXiv:2510.05342); (N,).

    sigmoid(c m) / sigmoid(m) where m > -tau, else 1; c falls from c_max to 1 / c_max as |m| passes
    tau, where it is 1.
    """
    most, tau = options["c_max"], options["tau"]
    least = 1 / most
    steep = (most - 1) / (1 - least) * np.exp(np.minimum(np.abs(margin_N) - tau, 500.0))
    c = least + (most - least) / (1 + steep)
    ratio = np.exp(-np.logaddexp(0, -c * margin_N) + np.logaddexp(0, -margin_N))
    return np.where(margin_N > -tau, ratio, 1.0)


def _column(table: pa.Table) -> Floats:
    return np.asarray(table[DEFAULT_BETA].to_numpy().astype(np.float64))


# under the names that arms have for them; each takes the table, that of the training pairs (the
# same one unless held-out pairs are asked about), the recipe, and what is in the name
DERIVED: dict[str, Callable[..., Derived]] = {
    "shuffled": shuffled,
    "matched-constant": matched,
    "geometric": geometric,
    "da": distance,
    "map": remapped,
}
WEIGHTS: dict[str, Callable[[Floats, Mapping[str, float]], Floats]] = {"madpo": margin_weights}
