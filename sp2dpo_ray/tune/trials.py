"""Trials on Ray Tune: as many arms at once as the cluster has room for.

In: names of arms and the work that trains one. Out: what became of each. Invariant: a trial that
finished left its artifact, so a sweep that was killed repeats none of those; an arm whose training
failed is kept as failed with its reason, and the others go on. Whatever stops a command (a full
disk, a wrong configuration) stops the sweep.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune

from sp2dpo_ray import errors
from sp2dpo_ray.config import TrainSection
from sp2dpo_ray.errors import ConfigError, Sp2dpoError, TrainingError

FINISHED, FAILED, STOPPED = "finished", "failed", "stopped"
LOST_TWICE = 3  # times that a trial begins again after its node was lost
LOOK_EVERY_S = 1.0
WAITING_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an arm: finished, or failed with a reason."""

    arm: str
    state: str
    reason: str = ""


class _Stop(tune.Stopper):
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

    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # Tune's banner; the bar says it better

    def trial(config: dict[str, Any]) -> None:
        tune.report(_attempt(config["arm"], work))

    tuner = tune.Tuner(
        # the trial itself only waits, its workers take cores and GPUs of their own; Tune refuses a
        # trial that takes nothing at all
        tune.with_resources(trial, {"memory": WAITING_BYTES}),
        param_space={"arm": tune.grid_search(arms)},
        tune_config=tune.TuneConfig(max_concurrent_trials=at_once),
        run_config=tune.RunConfig(
            name=folder.name,
            storage_path=str(folder.parent),
            stop=_Stop(),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=LOST_TWICE),
        ),
    )
    results = _fit(tuner, watch)
    found = {}
    for result in results:
        metrics = result.metrics or {}
        if metrics.get("state") == STOPPED:
            raise getattr(errors, metrics["kind"])(f"arm {metrics['arm']}: {metrics['reason']}")
        if result.error is not None:
            raise TrainingError(f"arm {result.config['arm']}: {result.error}")
        if "state" in metrics:
            found[metrics["arm"]] = Outcome(metrics["arm"], metrics["state"], metrics["reason"])
    return [found[arm] for arm in arms if arm in found]


def _attempt(arm: str, work: Callable[[str], object]) -> dict[str, str]:
    try:
        work(arm)
    except TrainingError as error:
        return {"arm": arm, "state": FAILED, "reason": str(error), "kind": "TrainingError"}
    except Sp2dpoError as error:
        kind = type(error).__name__
        return {"arm": arm, "state": STOPPED, "reason": str(error), "kind": kind}
    return {"arm": arm, "state": FINISHED, "reason": "", "kind": ""}


def _fit(tuner: tune.Tuner, watch: Callable[[], None]) -> Any:
    """On a thread: on the main one Tune takes Ctrl-C for itself."""
    found: list[Any] = []
    failures: list[BaseException] = []

    def fit() -> None:
        try:
            found.append(tuner.fit())
        except BaseException as error:  # carried to the caller's thread, whatever it is
            failures.append(error)

    thread = threading.Thread(target=fit, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(LOOK_EVERY_S)
        watch()
    if failures:
        raise failures[0]
    return found[0]


def room_for(train: TrainSection, asked: int | None) -> int:
    """How many trainings the cluster holds at once, and no more than were asked for."""
    present = ray.cluster_resources()
    each = {"CPU": float(train.least_workers), "GPU": train.least_workers * train.gpus_per_worker}
    fits = min(int(present.get(kind, 0) // share) for kind, share in each.items() if share)
    if fits < 1:
        raise ConfigError(
            f"train.workers: one arm needs {each['CPU']:g} CPUs and {each['GPU']:g} GPUs, the Ray "
            f"cluster has {present.get('CPU', 0):g} and {present.get('GPU', 0):g}"
        )
    return min(fits, asked or fits)
