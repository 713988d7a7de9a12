"""Arms: the training configurations that are compared, each a way to give every pair a beta.

In: an arm's name. Out: the betas of the training pairs. An arm is a row of `RULES`. Invariant: each
beta that leaves here is finite and positive, or the pair's id is in the error.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from sp2dpo_ray.core.hashing import uniform_draws
from sp2dpo_ray.core.schedule.columns import DEFAULT_BETA, ENSEMBLE, RANDOM_SEED
from sp2dpo_ray.core.schedule.ensemble import Floats
from sp2dpo_ray.errors import ConfigError, DataError


@dataclass(frozen=True, slots=True)
class Arm:
    """One training configuration: a constant beta, or a column of the schedule."""

    name: str
    title: str
    constant: float | None = None
    column: str | None = None
    rearrange: Callable[[Floats, list[str]], Floats] | None = None

    @property
    def needs_schedule(self) -> bool:
        return self.column is not None

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


def parse_arm(name: str) -> Arm:
    """The arm of that name; ConfigError for an unknown one."""
    for pattern, make in RULES:
        if match := re.fullmatch(pattern, name):
            arm = make(match)
            if arm.constant is not None and arm.constant <= 0:
                raise ConfigError(f"arm {name!r}: beta must be positive")
            return arm
    known = ("jmamp, sa-<teacher>-<variant>, se-<teacher>, ma-<variant>, random, shuffled, "
             "matched-constant, dpo:<beta>, column:<name>")  # fmt: skip
    raise ConfigError(f"arm {name!r} is unknown; the arms are {known}")
