"""A search on Ray Tune: Optuna proposes, ASHA may stop, what ended is on record.

In: a space, and the work that tries a point of it. Out: every trial with its objective. Invariant:
a trial on record is not tried again, and tells the sampler what it found; a search that was killed
begins with the trials that it was killed in.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import ConcurrencyLimiter
from ray.tune.search.optuna import OptunaSearch

from sp2dpo_ray.config.sweep import ChoiceSection, SearchSection
from sp2dpo_ray.core.lines import append_json_line, read_json_lines
from sp2dpo_ray.errors import TrainingError
from sp2dpo_ray.tune.trials import (
    FAILED,
    FINISHED,
    STOPPED,
    StopsAll,
    attempt,
    ended,
    fit,
    run_options,
    waiting,
)

HALVED = "halved"  # stopped by ASHA
Values = dict[str, Any]
Tell = Callable[[int, float], None]


@dataclass(frozen=True, slots=True)
class Found:
    """A trial: its point, what became of it, the objective where it ended, and the step there."""

    values: Values
    state: str
    objective: float | None = None
    step: int = 0
    reason: str = ""


class Record:
    """Trials as they begin and end, a line each."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, found: Found) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        append_json_line(self.path, asdict(found))

    def read(self) -> tuple[list[Found], list[Values]]:
        """Trials that ended, and points that were begun and did not."""
        ended: dict[str, Found] = {}
        begun: dict[str, Values] = {}
        for told in read_json_lines(self.path):
            row = Found(**told)
            key = json.dumps(row.values, sort_keys=True)
            if row.state == BEGUN:
                begun[key] = row.values
            else:
                ended[key] = row
        return list(ended.values()), [v for key, v in begun.items() if key not in ended]


BEGUN = "begun"


class _Recorder(tune.Callback):
    def __init__(self, record: Record) -> None:
        self._record = record

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self._record.add(Found(_plain(trial.config), BEGUN))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        if found := _found(trial.config, trial.last_result or {}):
            self._record.add(found)


def _found(config: Values, result: dict[str, Any]) -> Found | None:
    if result.get("state") == STOPPED or "objective" not in result:
        return None
    state = result["state"] or HALVED
    objective = None if state == FAILED else float(result["objective"])
    return Found(_plain(config), state, objective, int(result["step"]), result["reason"])


def _plain(config: Values) -> Values:
    return {key: value.item() if hasattr(value, "item") else value for key, value in config.items()}


def run_search(
    section: SearchSection,
    work: Callable[[Values, Tell], float],
    *,
    steps: int,
    at_once: int,
    folder: Path,
    record: Record,
    watch: Callable[[], None],
) -> list[Found]:
    """Try points until `section.trials` have ended; those on record count.

    work: tries a point, tells (step, objective) on the way, and returns the objective at its end.
    steps: of a whole trial. Raises what a trial raised if it is of a kind that concerns them all.
    """
    known, begun = record.read()
    if (left := section.trials - len(known)) <= 0:
        return known
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = {key: _distribution(part) for key, part in section.space.items()}
    # in the order of their points: the order in which trials ended would tell the sampler nothing
    search = OptunaSearch(
        space, metric="objective", mode="max", sampler=_sampler(section, len(known) + len(begun)),
        points_to_evaluate=begun[:left] or None,
    )  # fmt: skip
    for found in sorted(known, key=lambda each: json.dumps(each.values, sort_keys=True)):
        search.add_evaluated_point(found.values, found.objective or 0.0)

    def trial(config: Values) -> None:
        def tell(step: int, objective: float) -> None:
            tune.report({"objective": objective, "step": step, "state": "", "reason": ""})

        outcome, objective = attempt("", lambda _: work(config, tell))
        # what failed is the worst that can be, so that the sampler keeps away from it
        tune.report(outcome | {"objective": objective or 0.0, "step": steps})

    scheduler = None
    if section.halving:
        scheduler = ASHAScheduler(
            time_attr="step", metric="objective", mode="max", max_t=steps,
            grace_period=grace_steps(section, steps), reduction_factor=section.halving.factor,
        )  # fmt: skip
    tuner = tune.Tuner(
        waiting(trial),
        tune_config=tune.TuneConfig(
            search_alg=ConcurrencyLimiter(search, max_concurrent=at_once),
            scheduler=scheduler,
            num_samples=left,
            max_concurrent_trials=at_once,
        ),
        run_config=run_options(folder, StopsAll(), callbacks=[_Recorder(record)]),
    )
    for _ in ended(fit(tuner, watch), lambda config: f"trial {config}"):
        pass  # it is on record; what concerns them all is raised
    return record.read()[0]


def grace_steps(section: SearchSection, steps: int) -> int:
    """Steps between two looks at a trial; all of them without halving."""
    return max(1, round(section.halving.grace * steps)) if section.halving else steps


def best_of(found: list[Found]) -> Found:
    """The finished trial with the largest objective; TrainingError where none finished."""
    finished = [each for each in found if each.state == FINISHED]
    if not finished:
        reasons = {each.reason or each.state for each in found}
        raise TrainingError(f"no trial of the search finished: {'; '.join(sorted(reasons))}")
    return max(finished, key=lambda each: each.objective or 0.0)


def _distribution(part: Any) -> BaseDistribution:
    if isinstance(part, ChoiceSection):
        return CategoricalDistribution(part.choices)
    return FloatDistribution(part.low, part.high, log=part.log)


def _sampler(section: SearchSection, done: int) -> BaseSampler:
    """done: points that were drawn before a kill; the same seed would draw them once more."""
    seed = section.seed * 1_000_003 + done
    if section.sampler == "random":
        return RandomSampler(seed=seed)
    return TPESampler(seed=seed, n_startup_trials=min(10, max(2, section.trials // 3)))
