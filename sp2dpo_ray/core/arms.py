"""Arms: the training configurations that are compared, each a way to give every pair a beta.

In: an arm's name. Out: what it is, and the betas of the training pairs. An arm is a row of `RULES`.
Invariant: each beta that leaves here is finite, positive and within its bounds, or the pair's id is
in the error.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from sp2dpo_ray.core.derived import DERIVED, MAP_KEYS, Bounds, with_changes
from sp2dpo_ray.core.methods import METHODS, SUM, check_beta
from sp2dpo_ray.core.schedule.columns import DEFAULT_BETA, ENSEMBLE
from sp2dpo_ray.core.schedule.ensemble import Floats
from sp2dpo_ray.core.schedule.recipe import Recipe
from sp2dpo_ray.core.selections import SELECTIONS
from sp2dpo_ray.errors import ConfigError, DataError

ROUNDING = 1e-9  # of a map's last digits
SCHEDULED = 0.1  # a beta such as schedules hold
NUMBER = r"\d+\.?\d*|\.\d+"


@dataclass(frozen=True, slots=True)
class Arm:
    """One training configuration: a constant beta, a column of the schedule, or a function of it.

    derived: name in DERIVED and what it takes besides the schedule. method: of the catalogue; None:
    `train.loss`. mean: what the schedule's betas are scaled to on average, for a method whose betas
    are of another scale. selection: name in SELECTIONS and share. seed: of the training; None: that
    of the configuration.
    """

    name: str
    title: str
    constant: float | None = None
    column: str | None = None
    derived: tuple[str, tuple[Any, ...]] | None = None
    method: str | None = None
    mean: float | None = None
    selection: tuple[str, float] | None = None
    seed: int | None = None

    @property
    def needs_schedule(self) -> bool:
        return self.constant is None

    @property
    def is_global(self) -> bool:
        """Whether it is plain DPO with one beta: what a tuned baseline is chosen from."""
        return self.constant is not None and not (self.method or self.selection)

    @property
    def base(self) -> str:
        """The name without a seed."""
        return self.name.partition("@")[0]

    @property
    def what(self) -> tuple[Any, ...]:
        """What the arm is, whatever it is called: `dpo:0.1` and `dpo:0.10` are one."""
        return (
            self.constant, self.column, self.derived, self.method, self.mean, self.selection,
            self.seed,
        )  # fmt: skip

    @property
    def folder(self) -> str:
        """The name in paths."""
        return re.sub(r"[:/,=]", "-", self.name)

    def betas(
        self,
        schedule: pa.Table | None,
        recipe: Recipe | None,
        ids: list[str],
        *,
        training: pa.Table | None = None,
    ) -> Floats:
        """The beta of each pair in `ids`, in that order; (N,).

        schedule: with the arm's column, or all of them for a derived one. training: that of the
        training pairs, where `schedule` is that of held-out ones. Raises DataError with the
        pair's id where the schedule has no usable beta, ConfigError for a column it does not have.
        """
        if self.constant is not None:
            return np.full(len(ids), self.constant, dtype=np.float64)
        if schedule is None or recipe is None:
            raise DataError(
                f"train.arm: {self.name} needs a schedule; run the schedule stage first"
            )
        values, bounds = self._of_schedule(schedule, recipe, training)
        known = dict(zip(schedule["prompt_id"].to_pylist(), values.tolist(), strict=True))
        for name in ids:
            beta = known.get(name)
            if beta is None or not (np.isfinite(beta) and beta > 0):
                raise DataError(
                    f"pair {name}: {self.column or self.name} must be a positive number, it is "
                    f"{beta}; a column is empty where annotate.early_stop skipped its calls"
                )
        betas = np.array([known[name] for name in ids], dtype=np.float64)
        _check_bounds(betas, ids, bounds)
        if self.mean is None:
            return betas
        trained = betas if training is None else self._of_schedule(training, recipe, training)[0]
        return np.asarray(betas * (self.mean / trained.mean()))

    def bounds(self, recipe: Recipe) -> Bounds:
        """Within which a schedule's betas may move, of an arm that has a schedule's.

        Raises ConfigError for a map that the recipe does not allow.
        """
        if self.derived and self.derived[0] == "map":
            return with_changes(recipe, dict(self.derived[1][0]))[0].mapping.envelope
        own = next((row.mapping for row in recipe.estimators if row.column == self.column), None)
        return (own or recipe.mapping).envelope

    def _of_schedule(
        self, schedule: pa.Table, recipe: Recipe, training: pa.Table | None
    ) -> tuple[Floats, Bounds]:
        if self.derived is not None:
            name, more = self.derived
            found = DERIVED[name](
                schedule, schedule if training is None else training, recipe, *more
            )
            return found.betas, found.bounds
        if self.column not in schedule.column_names:
            raise ConfigError(
                f"train.arm: {self.name} needs the column {self.column!r}, "
                f"which the schedule does not have"
            )
        return schedule[self.column].to_numpy().astype(np.float64), self.bounds(recipe)


def _check_bounds(betas: Floats, ids: list[str], bounds: Bounds) -> None:
    low, high = bounds
    outside = np.flatnonzero((betas < low - ROUNDING) | (betas > high + ROUNDING))
    if len(outside):
        first = int(outside[0])
        raise DataError(
            f"pair {ids[first]}: its beta is {betas[first]:g}, outside of the schedule's envelope "
            f"[{low:g}, {high:g}]; {len(outside)} pairs are. Is this a column of betas?"
        )


def _changes(text: str) -> tuple[tuple[str, Any], ...]:
    """`beta_max=0.4,exponent=2` as keys and values, in the order of the keys."""
    found: dict[str, Any] = {}
    for part in text.split(","):
        key, given, value = part.partition("=")
        if not given or key not in MAP_KEYS or key in found:
            raise ConfigError(
                f"arm 'map:{text}': {part!r} must be key=value, each key once, of "
                f"{sorted(MAP_KEYS)}"
            )
        number = re.fullmatch(rf"(?:{NUMBER})(?:e-?\d+)?", value)
        found[key] = (int(value) if value.isdecimal() else float(value)) if number else value
    return tuple(sorted(found.items()))


def _of(name: str, *values: Any) -> dict[str, Any]:
    return {"derived": (name, values)}


# name pattern -> how the arm is made of the match; the first that fits decides
RULES: tuple[tuple[str, Callable[[re.Match[str]], Arm]], ...] = (
    (r"jmamp", lambda m: Arm(m[0], "SP2DPO: median over prompts, mean over teachers (Eq. 18)",
                             column=DEFAULT_BETA)),
    (r"sa-(\w+)-(\w+)", lambda m: Arm(m[0], f"single call: {m[1]}, {m[2]} (Eq. 15)",
                                      column=f"beta_{m[1]}_{m[2]}")),
    (r"se-(\w+)", lambda m: Arm(m[0], f"one teacher, median over prompts: {m[1]} (Eq. 16)",
                                column=f"beta_{m[1]}_{ENSEMBLE}")),
    (r"ma-(\w+)", lambda m: Arm(m[0], f"one prompt, mean over teachers: {m[1]} (Eq. 17)",
                                column=f"beta_annotators_mean_{m[1]}")),
    (r"random", lambda m: Arm(m[0], "control: uniform in the envelope", column="beta_random")),
    (r"shuffled", lambda m: Arm(m[0], "control: the schedule's betas on other pairs",
                                **_of(m[0]))),
    (r"matched-constant", lambda m: Arm(m[0], "control: the schedule's mean for every pair",
                                        **_of(m[0]))),
    (r"column:(\w+)", lambda m: Arm(m[0], f"column {m[1]} of the schedule", column=m[1])),
    (r"map:(\S+)", lambda m: Arm(m[0], f"the schedule under another map: {m[1]}",
                                 **_of("map", _changes(m[1])))),
    (rf"geometric:({NUMBER})", lambda m: Arm(
        m[0], f"geometric soft labels: {float(m[1]):g} times the panel's confidence "
        "(arXiv:2409.06691)", **_of("geometric", float(m[1])))),
    (rf"da:({NUMBER})", lambda m: Arm(
        m[0], f"DA-DPO: {float(m[1]):g} times 1 + the panel's gap (arXiv:2601.00623)",
        **_of("da", float(m[1])))),
    (rf"dpo:({NUMBER})", lambda m: Arm(m[0], f"DPO, beta {float(m[1]):g} for every pair",
                                       constant=float(m[1]))),
)  # fmt: skip


def parse_arm(name: str) -> Arm:
    """The arm of that name; ConfigError for an unknown one.

    `<betas>` is a rule above, `<betas>+<method>` trains a method of the catalogue with these betas
    (scaled to the method's own on average where it multiplies them with log-ratios per token;
    `<betas>+<method>:<mean>` says to which), `<method>` and `<method>:<beta>` one with a beta for
    all; `/<selection>[:<share>]` behind it trains on a part of the pairs, `@<n>` at the end with
    seed n.
    """
    body, at, seed = name.partition("@")
    if at and not seed.isdecimal():
        raise ConfigError(f"arm {name!r}: a seed is a whole number, as in {body}@1")
    whole, slash, part = body.partition("/")
    bare, plus, method = whole.partition("+")
    arm = _with_method(name, bare, method) if plus else _by_rule(bare) or _by_method(bare)
    if arm is None:
        known = ("jmamp, sa-<teacher>-<variant>, se-<teacher>, ma-<variant>, random, shuffled, "
                 "matched-constant, dpo:<beta>, geometric:<beta>, da:<beta>, column:<name>, "
                 "map:<key>=<value>,...; with +<method> behind it, or <method>:<beta>, of "
                 f"{', '.join(METHODS)}; and /<selection>")  # fmt: skip
        raise ConfigError(f"arm {name!r} is unknown; the arms are {known}")
    if 0.0 in (arm.constant, *(arm.derived[1] if arm.derived else ())):
        raise ConfigError(f"arm {name!r}: beta must be positive")
    if slash:
        arm = _selected(arm, name, part)
    return replace(arm, name=name, seed=int(seed) if at else None)


def _selected(arm: Arm, name: str, part: str) -> Arm:
    selection, colon, share = part.partition(":")
    row = SELECTIONS.get(selection)
    if row is None:
        raise ConfigError(f"arm {name!r}: no selection {selection!r}; there are {list(SELECTIONS)}")
    if colon and not (re.fullmatch(NUMBER, share) and 0 < float(share) <= 1):
        raise ConfigError(f"arm {name!r}: the share must be above 0 and at most 1, got {share!r}")
    kept = float(share) if colon else row.share
    title = f"{arm.title}; {row.title}, share {kept:g}"
    return replace(arm, title=title, selection=(selection, kept))


def _by_rule(bare: str) -> Arm | None:
    return next((make(m) for pattern, make in RULES if (m := re.fullmatch(pattern, bare))), None)


def _by_method(bare: str) -> Arm | None:
    name, colon, number = bare.partition(":")
    row = METHODS.get(name)
    if row is None or (colon and not re.fullmatch(NUMBER, number)):
        return None
    if colon and not row.uses_beta:
        raise ConfigError(f"arm {bare!r}: {name} knows no beta; its name is {name}")
    beta = float(number) if colon else row.beta
    if row.prior:
        raise ConfigError(f"arm {bare!r}: {name} begins with a schedule's betas: jmamp+{name}")
    if beta is None:
        raise ConfigError(f"arm {bare!r}: which beta? {name}:0.1, or a schedule's: jmamp+{name}")
    check_beta(name, beta)
    told = f", beta {beta:g} for every pair" if row.uses_beta else ""
    return Arm(bare, f"{row.title}{told}", constant=beta, method=name)


def _with_method(name: str, bare: str, method: str) -> Arm | None:
    method, colon, mean = method.partition(":")
    arm, row = _by_rule(bare), METHODS.get(method)
    if arm is None or row is None or (colon and not re.fullmatch(NUMBER, mean)):
        return None
    if not row.uses_beta:
        raise ConfigError(f"arm {name!r}: {method} knows no beta, so no betas can be given to it")
    if row.prior and arm.constant is not None:
        raise ConfigError(
            f"arm {name!r}: {method} begins with a schedule's betas, and {bare} has one for all"
        )
    if row.prior and arm.derived and arm.derived[0] in ("geometric", "da"):
        raise ConfigError(
            f"arm {name!r}: {method} moves betas within the schedule's envelope, and {bare} has "
            "bounds of its own"
        )
    scaled = row.scale != SUM and arm.constant is None
    if colon and not scaled:
        raise ConfigError(
            f"arm {name!r}: {bare} says what beta is; only a schedule's betas with a method of "
            "log-ratios per token are scaled to a mean"
        )
    if not scaled:
        check_beta(method, arm.constant if arm.constant is not None else SCHEDULED)
        return replace(arm, title=f"{row.title}; {arm.title}", method=method)
    mean_beta = float(mean) if colon else row.beta
    if mean_beta is None:
        raise ConfigError(f"arm {name!r}: scaled to which mean? {name}:1")
    check_beta(method, mean_beta)
    title = f"{row.title}; {arm.title}, scaled to a mean of {mean_beta:g}"
    return replace(arm, title=title, method=method, mean=mean_beta)
