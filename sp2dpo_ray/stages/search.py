"""The search of a sweep: other maps as arms `map:...`, tried, halved, remembered.

In: `sweep.search`, and what the stage `train` reads. Out: `train/<arm>/` of each trial that
finished, and what became of every one. Invariant: the objective is accuracy on the tuning half of
the held-out pairs, which knows no beta and is never reported.
"""

from __future__ import annotations

import shutil
from typing import Any

import pyarrow.parquet as pq

from sp2dpo_ray.config.sweep import SearchSection
from sp2dpo_ray.console import bar, say
from sp2dpo_ray.core.arms import parse_arm
from sp2dpo_ray.core.derived import DEFAULT_ESTIMATOR
from sp2dpo_ray.core.files import EVAL, EVAL_PAIRS
from sp2dpo_ray.core.halves import prompts_of, tuning_half
from sp2dpo_ray.core.schedule.mapping import SHAPES
from sp2dpo_ray.errors import ConfigError, TrainingError
from sp2dpo_ray.evaluate.compare import accuracy_of
from sp2dpo_ray.run import Run
from sp2dpo_ray.stages.arm_pairs import Known
from sp2dpo_ray.stages.train import folder_of, train
from sp2dpo_ray.tune.search import Found, Record, Tell, best_of, grace_steps, run_search
from sp2dpo_ray.tune.trials import room_for

RECORDS, TRIALS = "search", "trials.jsonl"
# keys that only some values of another key read
READ_BY = {
    **{key: ("shape", {name}) for name, shape in SHAPES.items() for key in shape.keys},
    "damping_lambda": ("damping", {"exp", "rational"}),
}
DIGITS = 4  # that a value keeps in an arm's name, and so in the map


def search(run: Run) -> tuple[str, list[Found]]:
    """The best arm of the search, and every trial."""
    section = run.config.sweep.search
    assert section is not None
    known = Known(run)
    if known.recipe is None:
        raise ConfigError("sweep.search varies a schedule's map; run: sp2dpo schedule")
    options = run.config.train
    steps = -(-len(known.ids) // options.pairs_per_step) * options.epochs
    record = Record(run.path(RECORDS, _key(run, section), TRIALS))
    folder = run.path(RECORDS, "tune")
    shutil.rmtree(folder, ignore_errors=True)
    at_once = room_for(options, run.config.sweep.at_once)
    say(f"search: {section.trials} trials, {at_once} at once, up to {steps} steps each")
    looks = grace_steps(section, steps)
    with bar("search: trials", section.trials) as advance:
        done = 0

        def watch() -> None:
            nonlocal done
            ended, _ = record.read()
            if len(ended) > done:
                best = max((each.objective or 0.0 for each in ended), default=0.0)
                advance(len(ended) - done, f"best accuracy so far {best:.3f}")
                done = len(ended)

        found = run_search(
            section, lambda values, tell: _try(run, values, tell, looks), steps=steps,
            at_once=at_once, folder=folder, record=record, watch=watch,
        )  # fmt: skip
    shutil.rmtree(folder, ignore_errors=True)
    return arm_of(best_of(found).values), found


def arm_of(values: dict[str, Any]) -> str:
    """The arm of a point: keys in order, without those that nothing reads there."""
    read = {
        key: value
        for key, value in values.items()
        if key not in READ_BY
        or READ_BY[key][0] not in values
        or values[READ_BY[key][0]] in READ_BY[key][1]
    }
    parts = [
        f"{key}={value if isinstance(value, str | int) else format(value, f'.{DIGITS}g')}"
        for key, value in sorted(read.items())
    ]
    return "map:" + ",".join(parts)


def _try(run: Run, values: dict[str, Any], tell: Tell, looks: int) -> float:
    name = arm_of(values)
    try:
        parse_arm(name).bounds(run.config.recipe)
    except ConfigError as error:  # of this point alone, not of the search
        raise TrainingError(f"{name} cannot be: {error}") from error

    def on_row(row: dict[str, Any]) -> None:
        # of the last step the end tells, once the artifact is there
        if "held_out/accuracy" in row and row["step"] < row["steps"]:
            tell(row["step"], row["held_out/accuracy"])

    # two points may be one arm, where what differs is not read: the second waits and finds it done
    with run.alone(RECORDS, folder_of(run, name).name):
        train(run, name, eval_steps=looks, on_row=on_row)
    table = pq.read_table(folder_of(run, name) / EVAL_PAIRS, columns=["prompt_id", "margin"])
    half = tuning_half(prompts_of(run.pairs_file(EVAL), table["prompt_id"].to_pylist()))
    if not half.any():
        raise TrainingError(
            f"{name} has no objective: too few held-out pairs to choose with. Raise "
            "data.eval_fraction or name data.eval_source"
        )
    return float(accuracy_of(table["margin"].to_numpy()[half]).mean())


def _key(run: Run, section: SearchSection) -> str:
    """What trials of one search share; the number of trials is not part of it."""
    inputs = {name: run.path(folder) for name, folder in (("prepare", "pairs"),
              ("student", "student"), ("schedule", "schedule"))}  # fmt: skip
    settings = {
        "search": section.model_dump(mode="json", exclude={"trials"}),
        **run.config.training(parse_arm(DEFAULT_ESTIMATOR)),  # as the schedule's own arm trains
    }
    return run.provenance("search", settings, inputs).key[:16]
