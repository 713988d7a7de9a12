"""Trials on Ray Tune: as many arms at once as the cluster has room for.

In: names of arms and the work that trains one. Out: what became of each. Invariant: a trial that
finished left its artifact, so a sweep that was killed repeats none of those; an arm whose training
failed is kept as failed with its reason, and the others go on. Whatever stops a command (a full
disk, a wrong configuration) stops the sweep.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune

from sp2dpo_ray import errors
from sp2dpo_ray.config import TrainSection
from sp2dpo_ray.core.threads import off_main_thread
from sp2dpo_ray.errors import ConfigError, Sp2dpoError, TrainingError, WorkerLost
from sp2dpo_ray.room import grows, room

FINISHED, FAILED, STOPPED = "finished", "failed", "stopped"
LOST_TWICE = 3  # times that a trial begins again after its node was lost
LOOK_EVERY_S = 1.0
WAITING_BYTES = 1 << 20
LET_GO_S = 3


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an arm: finished, or failed with a reason."""

    arm: str
    state: str
    reason: str = ""


class StopsAll(tune.Stopper):
    """Ends the whole sweep once a trial reports what no other could do better."""

    def __init__(self) -> None:
        self._stop = False

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        self._stop |= result.get("state") == STOPPED
        return False

    def stop_all(self) -> bool:
        return self._stop


def run_trials(
    arms: list[str],
    work: Callable[[str], object],
    *,
    at_once: int,
    folder: Path,
    watch: Callable[[], None],
) -> list[Outcome]:
    """Train the arms, so many at once; work(arm) runs on any node of the cluster.

    folder: Tune's own records, on storage that every node sees. watch() is called every second.
    Raises what a trial raised if it is of a kind that concerns them all.
    """

    def trial(config: dict[str, Any]) -> None:
        tune.report(attempt(config["arm"], work)[0])

    tuner = tune.Tuner(
        waiting(trial),
        param_space={"arm": tune.grid_search(arms)},
        # a trial's process serves the next one, too: it takes seconds to import what trains
        tune_config=tune.TuneConfig(max_concurrent_trials=at_once, reuse_actors=True),
        run_config=run_options(folder, StopsAll()),
    )
    found = {}
    for metrics in ended(fit(tuner, watch), lambda config: f"arm {config['arm']}"):
        if "state" in metrics:
            found[metrics["arm"]] = Outcome(metrics["arm"], metrics["state"], metrics["reason"])
    return [found[arm] for arm in arms if arm in found]


def waiting(trial: Callable[[dict[str, Any]], None]) -> Any:
    """A trial that only waits: its workers take cores and GPUs of their own. Tune refuses one that
    takes nothing at all."""
    return tune.with_resources(trial, {"memory": WAITING_BYTES})


def run_options(folder: Path, stop: tune.Stopper, **more: Any) -> tune.RunConfig:
    """How Tune runs: its records in the folder, no output of its own, lost trials begun again."""
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # Tune's banner; the bar says it better
    # a stopped trial waits for its training to end before it lets go of its workers; do not
    os.environ.setdefault("TUNE_FORCE_TRIAL_CLEANUP_S", str(LET_GO_S))
    return tune.RunConfig(
        name=folder.name,
        storage_path=str(folder.parent),
        stop=stop,
        verbose=0,
        failure_config=tune.FailureConfig(max_failures=LOST_TWICE),
        **more,
    )


def attempt(arm: str, work: Callable[[str], Any]) -> tuple[dict[str, str], Any]:
    """What became of the work, in a form that Tune reports, and what the work returned."""
    done = None
    try:
        done = work(arm)
    except WorkerLost:
        raise  # Tune begins the trial again, which goes on from its checkpoint
    except TrainingError as error:
        state, reason, kind = FAILED, str(error), "TrainingError"
    except Sp2dpoError as error:
        state, reason, kind = STOPPED, str(error), type(error).__name__
    else:
        state, reason, kind = FINISHED, "", ""
    return {"arm": arm, "state": state, "reason": reason, "kind": kind}, done


def fit(tuner: tune.Tuner, watch: Callable[[], None]) -> Any:
    """Run the tuner; watch() is called every second."""
    return off_main_thread(tuner.fit, watch, LOOK_EVERY_S)


def ended(
    results: Iterable[Any], name: Callable[[dict[str, Any]], str]
) -> Iterator[dict[str, Any]]:
    """What each trial reported last; raises what a trial raised if it concerns them all.

    name: what a message calls the trial of a point.
    """
    for result in results:
        metrics = result.metrics or {}
        if metrics.get("state") == STOPPED:
            raise getattr(errors, metrics["kind"])(f"{name(result.config)}: {metrics['reason']}")
        if result.error is not None:
            raise TrainingError(f"{name(result.config)}: {result.error}")
        yield metrics


def room_for(train: TrainSection, asked: int | None) -> int:
    """How many trainings the cluster holds at once, and no more than were asked for."""
    bundle = {"CPU": 1.0, "GPU": float(train.gpus_per_worker)}
    present = room([bundle] * train.least_workers)
    each = {"CPU": float(train.least_workers), "GPU": train.least_workers * train.gpus_per_worker}
    fits = min(int(present.get(kind, 0) // share) for kind, share in each.items() if share)
    if fits < 1:
        raise ConfigError(
            f"train.workers: one arm needs {each['CPU']:g} CPUs and {each['GPU']:g} GPUs, the Ray "
            f"cluster has {present.get('CPU', 0):g} and {present.get('GPU', 0):g}"
        )
    if asked and grows():
        return asked  # those that wait for their workers make nodes come
    return min(fits, asked or fits)
