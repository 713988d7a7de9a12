"""Arms: the training configurations that are compared, each a way to give every pair a beta.

In: an arm's name. Out: the betas of the training pairs. An arm is a row of `RULES`. Invariant: each
beta that leaves here is finite and positive, or the pair's id is in the error.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from sp2dpo_ray.core.hashing import uniform_draws
from sp2dpo_ray.core.methods import METHODS, SUM, check_beta
from sp2dpo_ray.core.schedule.columns import DEFAULT_BETA, ENSEMBLE, RANDOM_SEED
from sp2dpo_ray.core.schedule.ensemble import Floats
from sp2dpo_ray.errors import ConfigError, DataError

ROUNDING = 1e-9  # of a map's last digits


@dataclass(frozen=True, slots=True)
class Arm:
    """One training configuration: a constant beta, or a column of the schedule."""

    name: str
    title: str
    constant: float | None = None
    column: str | None = None
    rearrange: Callable[[Floats, list[str]], Floats] | None = None
    method: str | None = None
    """Of the catalogue; None: `train.loss`."""
    seed: int | None = None
    """Of the training; None: that of the configuration."""

    @property
    def needs_schedule(self) -> bool:
        return self.column is not None

    @property
    def base(self) -> str:
        """The name without a seed."""
        return self.name.partition("@")[0]

    @property
    def what(self) -> tuple[Any, ...]:
        """What the arm is, whatever it is called: `dpo:0.1` and `dpo:0.10` are one."""
        return self.constant, self.column, self.rearrange, self.method, self.seed

    @property
    def folder(self) -> str:
        """The name in paths."""
        return self.name.replace(":", "-")

    def betas(self, schedule: pa.Table | None, ids: list[str]) -> Floats:
        """The beta of each pair in `ids`, in that order; (N,).

        Raises DataError with the pair's id where the schedule has no usable beta.
        """
        if self.column is None:
            return np.full(len(ids), self.constant, dtype=np.float64)
        if schedule is None:
            raise DataError(
                f"train.arm: {self.name} needs a schedule; run the schedule stage first"
            )
        if self.column not in schedule.column_names:
            raise ConfigError(
                f"train.arm: {self.name} needs the column {self.column!r}, "
                f"which the schedule does not have"
            )
        values = schedule[self.column].to_numpy().astype(np.float64)
        if self.rearrange is not None:
            values = self.rearrange(values, schedule["prompt_id"].to_pylist())
        known = dict(zip(schedule["prompt_id"].to_pylist(), values.tolist(), strict=True))
        for name in ids:
            beta = known.get(name)
            if beta is None or not (np.isfinite(beta) and beta > 0):
                raise DataError(
                    f"pair {name}: {self.column} must be a positive number, it is {beta}; a column "
                    "is empty where annotate.early_stop skipped its calls"
                )
        return np.array([known[name] for name in ids], dtype=np.float64)


def _shuffle(values: Floats, ids: list[str]) -> Floats:
    """The same betas on other pairs: each pair takes the beta of the pair at its drawn rank."""
    order = np.argsort(uniform_draws(ids, seed=RANDOM_SEED, purpose="beta_shuffled"))
    return values[order]


def _match(values: Floats, ids: list[str]) -> Floats:
    """Every pair gets the schedule's mean: the same average enforcement without its shape."""
    return np.full_like(values, values.mean())


def check_envelope(betas: Floats, ids: list[str], envelope: tuple[float, float]) -> None:
    """Refuse a schedule's beta outside of the bounds that its maps were given."""
    low, high = envelope
    outside = np.flatnonzero((betas < low - ROUNDING) | (betas > high + ROUNDING))
    if len(outside):
        first = int(outside[0])
        raise DataError(
            f"pair {ids[first]}: its beta is {betas[first]:g}, outside of the schedule's envelope "
            f"[{low:g}, {high:g}]; {len(outside)} pairs are. Is this a column of betas?"
        )


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
                                column=DEFAULT_BETA, rearrange=_shuffle)),
    (r"matched-constant", lambda m: Arm(m[0], "control: the schedule's mean for every pair",
                                        column=DEFAULT_BETA, rearrange=_match)),
    (r"column:(\w+)", lambda m: Arm(m[0], f"column {m[1]} of the schedule", column=m[1])),
    (r"dpo:(\d+\.?\d*|\.\d+)", lambda m: Arm(m[0], f"DPO, beta {float(m[1]):g} for every pair",
                                             constant=float(m[1]))),
)  # fmt: skip


NUMBER = r"\d+\.?\d*|\.\d+"


def parse_arm(name: str) -> Arm:
    """The arm of that name; ConfigError for an unknown one.

    `<betas>` is a rule above, `<betas>+<method>` trains a method of the catalogue with these betas,
    `<method>` and `<method>:<beta>` one with a beta for all; `@<n>` behind it trains with seed n.
    """
    body, at, seed = name.partition("@")
    if at and not seed.isdecimal():
        raise ConfigError(f"arm {name!r}: a seed is a whole number, as in {body}@1")
    bare, plus, method = body.partition("+")
    arm = _with_method(name, bare, method) if plus else _by_rule(bare) or _by_method(bare)
    if arm is None:
        known = ("jmamp, sa-<teacher>-<variant>, se-<teacher>, ma-<variant>, random, shuffled, "
                 "matched-constant, dpo:<beta>, column:<name>; with +<method> behind it, or "
                 f"<method>:<beta>, of {', '.join(METHODS)}")  # fmt: skip
        raise ConfigError(f"arm {name!r} is unknown; the arms are {known}")
    if arm.constant is not None and arm.constant <= 0:
        raise ConfigError(f"arm {name!r}: beta must be positive")
    return replace(arm, name=name, seed=int(seed) if at else None)


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
    if beta is None:
        raise ConfigError(f"arm {bare!r}: which beta? {name}:0.1, or a schedule's: jmamp+{name}")
    check_beta(name, beta)
    told = f", beta {beta:g} for every pair" if row.uses_beta else ""
    return Arm(bare, f"{row.title}{told}", constant=beta, method=name)


def _with_method(name: str, bare: str, method: str) -> Arm | None:
    arm, row = _by_rule(bare), METHODS.get(method)
    if arm is None or row is None:
        return None
    if not row.uses_beta:
        raise ConfigError(f"arm {name!r}: {method} knows no beta, so no betas can be given to it")
    if row.scale != SUM and arm.constant is None:
        raise ConfigError(
            f"arm {name!r}: {method} multiplies beta with log-ratios per token, and the betas of a "
            "schedule are made for sums over tokens"
        )
    if arm.constant is not None:
        check_beta(method, arm.constant)
    return replace(arm, title=f"{row.title}; {arm.title}", method=method)
