"""What the testbed shows: every arm of every world against the tuned global beta of that world.

In: trials. Out: rows, and the same as Markdown. Invariant: the global beta is chosen on one half of
the prompts and the rows report the other; intervals hold for other seeds and other prompts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

import numpy as np
from sklearn.linear_model import LogisticRegression

from sp2dpo_ray.core.arms import parse_arm
from sp2dpo_ray.core.halves import tuning_half
from sp2dpo_ray.evaluate.compare import Interval, gain_on, interval, verdict
from sp2dpo_ray.lab.launch import Trials
from sp2dpo_ray.lab.trial import Means, Measured
from sp2dpo_ray.lab.world import Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Row(Means):
    """An arm in a world, its means being over seeds. won: true win rate against the student before
    training; controlled: the same as it would be at equal lengths; gain: of `won`, on the tuned
    global beta."""

    world: str
    arm: str
    seeds: int
    won: Interval
    controlled: Interval
    gain: Interval | None
    verdict: str


def rows_of(trials: Trials) -> list[Row]:
    """The rows of every world, its baseline first."""
    return [row for world, by_seed in trials.items() for row in _of_world(world, by_seed)]


def _of_world(world: str, by_seed: dict[int, dict[str, Measured]]) -> Iterable[Row]:
    names = list(next(iter(by_seed.values())))
    of_arm = {name: [by_seed[seed][name] for seed in sorted(by_seed)] for name in names}
    won = {name: np.stack([each.won_M for each in found]) for name, found in of_arm.items()}
    half = tuning_half([str(number) for number in range(next(iter(won.values())).shape[1])])
    tuned = [name for name in names if parse_arm(name).is_global] or names[:1]
    baseline = max(tuned, key=lambda name: won[name][:, half].mean())
    for name in [baseline, *(name for name in names if name != baseline)]:
        values, found = won[name][:, ~half], of_arm[name]
        gain = None if name == baseline else gain_on(won[baseline][:, ~half], values)
        means = {
            figure.name: float(np.mean([getattr(each, figure.name) for each in found]))
            for figure in fields(Means)
        }
        controlled = np.array([[_controlled(each, ~half)] for each in found])
        yield Row(
            world=world, arm=name, seeds=len(found), won=interval(values),
            controlled=interval(controlled), gain=gain, verdict=verdict(gain), **means,
        )  # fmt: skip


def _controlled(measured: Measured, part: Floats) -> float:
    """The win rate at equal lengths: a logistic regression of the outcome on the difference in
    length, as length-controlled AlpacaEval makes it (Dubois et al. 2024, arXiv:2404.04475), read at
    difference 0."""
    outcome = measured.outcome_MC[part].ravel()
    longer = measured.longer_MC[part].ravel()
    feature = np.tanh(longer / max(longer.std(), 1.0))[:, None]
    if outcome.min() == outcome.max():
        return float(outcome[0])
    # a tie is half a win and half a loss
    model = LogisticRegression(C=np.inf).fit(
        np.concatenate([feature, feature]),
        np.repeat([1, 0], len(outcome)),
        sample_weight=np.concatenate([outcome, 1 - outcome]),
    )
    return float(model.predict_proba(np.zeros((1, 1)))[0, 1])


def markdown(rows: list[Row], titles: dict[str, str]) -> str:
    """A table a world."""
    lines: list[str] = []
    for world in dict.fromkeys(row.world for row in rows):
        here = [row for row in rows if row.world == world]
        lines += [
            f"### {world}: {titles[world]}",
            "",
            f"{here[0].seeds} seeds; {here[0].arm} was the best global beta on other prompts.",
            "",
            "| arm | win rate % | length-controlled % | gain, points | verdict | forbidden % "
            "| tokens | accuracy by labels % | by truth % |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for row in here:
            gain = "" if row.gain is None else _points(row.gain, "+.1f")
            lines.append(
                f"| {row.arm} | {_points(row.won, '.1f')} | {_points(row.controlled, '.1f')} "
                f"| {gain} | {row.verdict} | {100 * row.forbidden:.1f} | {row.length:.1f} "
                f"| {100 * row.labelled:.1f} | {100 * row.true:.1f} |"
            )
        lines.append("")
    return "\n".join(lines)


def _points(value: Interval, form: str) -> str:
    mean, low, high = (format(100 * each, form) for each in (value.mean, value.low, value.high))
    return f"{mean} ({low} to {high})"
