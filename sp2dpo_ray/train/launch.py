"""Training one arm on Ray Train: workers, resources, checkpoints, and what went wrong.

In: a `TrainTask`. Out: nothing but the files that the workers wrote. Invariant: the run's name is
the stage's key, so an interrupted training resumes, and a changed one never does by mistake.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.exceptions import RayError, RayTaskError
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import PreemptionError, TrainingFailedError

from sp2dpo_ray.console import say
from sp2dpo_ray.core.files import CHECKPOINTS, METRICS_LINES
from sp2dpo_ray.core.threads import off_main_thread
from sp2dpo_ray.errors import (
    DISK_FULL,
    ConfigError,
    Sp2dpoError,
    Stopped,
    TrainingError,
    WorkerLost,
)
from sp2dpo_ray.room import room
from sp2dpo_ray.train.loop import train_worker
from sp2dpo_ray.train.task import TrainTask

WATCH_EVERY_S = 0.5
# what befalls workers, not what they do: a node that goes, a process that is killed
LOST = (RayError, WorkerHealthCheckFailedError, PreemptionError)


def train_arm(task: TrainTask, *, follow: Callable[[dict[str, Any]], None]) -> None:
    """Train the arm to its end; follow(row) is given each line of metrics.jsonl as it comes.

    Raises TrainingError with the first worker's words if training fails, ConfigError if the
    cluster has no room for a worker, WorkerLost where one went more often than
    `train.max_failures`, Stopped where the disk is full: the same call goes on.
    """
    options = task.options
    gpu = options.gpus_per_worker > 0
    resources = {"CPU": 1.0, **({"GPU": options.gpus_per_worker} if gpu else {})}
    _check_room(options.least_workers, resources)
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"task": task},
        scaling_config=ScalingConfig(
            num_workers=options.workers, use_gpu=gpu, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name=task.key[:16],
            storage_path=str(task.output / CHECKPOINTS),
            failure_config=FailureConfig(max_failures=options.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=options.keep),
        ),
    )
    try:
        _fit(trainer, task.output / METRICS_LINES, follow)
    except TrainingFailedError as error:
        cause = _cause(error)
        if isinstance(cause, OSError) and cause.errno in DISK_FULL:
            raise Stopped(
                f"no disk space left while training in {task.output}: {cause}. Make room; the same "
                "command goes on from the last checkpoint"
            ) from error
        if isinstance(cause, ConfigError):  # something that a node of the cluster lacks
            raise ConfigError(str(cause)) from error
        if _is_loss(cause):
            raise WorkerLost(
                f"a worker of the training in {task.output} was lost: {type(cause).__name__}: "
                f"{cause}. The same command goes on from the last checkpoint; train.max_failures "
                "says how often it does so by itself"
            ) from error
        words = str(cause) if isinstance(cause, Sp2dpoError) else f"{type(cause).__name__}: {cause}"
        raise TrainingError(f"arm training in {task.output} failed: {words}") from error


def _fit(trainer: TorchTrainer, metrics: Path, follow: Callable[[dict[str, Any]], None]) -> None:
    """Run the trainer and follow metrics.jsonl, which rank 0 appends to."""
    seen = 0

    def look() -> None:
        nonlocal seen
        lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.exists() else []
        if len(lines) != seen and lines and lines[-1].endswith("}"):
            # after a restored step there are fewer lines than before
            rows = [json.loads(line) for line in lines[seen:] or lines[-1:]]
            seen = len(lines)
            for row in rows:
                if "note" in row:
                    say(f"train: {row['note']}")
                follow(row)

    off_main_thread(trainer.fit, look, WATCH_EVERY_S)


def _check_room(workers: int, per_worker: dict[str, float]) -> None:
    """Refuse what this cluster can never start: Ray would wait without a word."""
    present = room([per_worker] * workers)
    for kind, share in per_worker.items():
        if workers * share > present.get(kind, 0):
            raise ConfigError(
                f"train.workers: {workers} workers need {workers * share:g} {kind}s, the Ray "
                f"cluster has {present.get(kind, 0):g}. Lower train.workers, set "
                "train.gpus_per_worker: 0 to train on CPUs, or give the cluster more nodes"
            )


def _cause(error: BaseException) -> BaseException:
    """What ended the training, without Ray's wrappings. Where a worker went, the others fail at
    their next meeting: its loss is the cause. Else the first worker's error."""
    failures = getattr(error, "worker_failures", None) or {0: error}
    found = [_unwrapped(failures[rank]) for rank in sorted(failures)]
    return next((each for each in found if _is_loss(each)), found[0])


def _unwrapped(error: BaseException) -> BaseException:
    while (deeper := getattr(error, "_base_exc", None) or error.__cause__) is not None:
        error = deeper
    return error


def _is_loss(error: BaseException) -> bool:
    return isinstance(error, LOST) and not isinstance(error, RayTaskError)
