"""Experiment trackers beside TensorBoard: W&B and MLflow, where a configuration names them.

In: lines of metrics. Out: the same in the tracker, under the run's and the arm's names. Invariant:
nothing is sent anywhere unless `train.trackers` says so; a resumed training goes on in the same
record.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from sp2dpo_ray.errors import ConfigError
from sp2dpo_ray.train.task import TrainTask

TAG = "sp2dpo_key"  # by which a resumed training finds its record in MLflow


class Tracker(Protocol):
    def log(self, step: int, metrics: dict[str, float]) -> None: ...

    def close(self) -> None: ...


class Wandb:
    """Where to, and whether online: W&B's own variables (WANDB_MODE, WANDB_API_KEY, ...)."""

    def __init__(self, task: TrainTask) -> None:
        import wandb

        self._run = wandb.init(
            project=task.run,
            name=task.arm,
            id=task.key[:32],
            resume="allow",
            dir=str(task.output),
            config=settings(task),
        )

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self._run.log(metrics, step=step)

    def close(self) -> None:
        self._run.finish()


class Mlflow:
    """Where to: MLFLOW_TRACKING_URI, else MLflow's default."""

    def __init__(self, task: TrainTask) -> None:
        from mlflow import MlflowClient

        self._client = client = MlflowClient()
        known = client.get_experiment_by_name(task.run)
        place = known.experiment_id if known else client.create_experiment(task.run)
        found = client.search_runs([place], f"tags.{TAG} = '{task.key}'", max_results=1)
        if found:
            self._id = found[0].info.run_id
            client.set_tag(self._id, "resumed", "true")
            client.update_run(self._id, status="RUNNING")
            return
        made = client.create_run(place, run_name=task.arm, tags={TAG: task.key})
        self._id = made.info.run_id
        for name, value in settings(task).items():
            client.log_param(self._id, name, value)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self._client.log_metric(self._id, name, value, step=step)

    def close(self) -> None:
        self._client.set_terminated(self._id)


TRACKERS: dict[str, Callable[[TrainTask], Tracker]] = {"wandb": Wandb, "mlflow": Mlflow}


def open_trackers(task: TrainTask) -> list[Tracker]:
    """Those that `train.trackers` names; ConfigError where one is not installed."""
    opened = []
    for name in task.options.trackers:
        try:
            opened.append(TRACKERS[name](task))
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"train.trackers: {name} is not installed on the node that trains; "
                f"pip install {name}, or leave it out"
            ) from error
    return opened


def settings(task: TrainTask) -> dict[str, Any]:
    """What the record says of the training: names, student, options."""
    options = task.options.model_dump(mode="json") | {
        f"lora.{name}": value
        for name, value in (task.lora.model_dump(mode="json") if task.lora else {}).items()
    }
    return {"arm": task.arm, "student": task.student.model, "key": task.key, **options}
