"""What Ray's metrics endpoint shows of training, by run and arm.

Names are stable: `sp2dpo_train_step`, `sp2dpo_train_steps`, `sp2dpo_train_loss`,
`sp2dpo_train_margin_nats`, `sp2dpo_train_tokens_per_second`, `sp2dpo_train_gradient_norm`,
`sp2dpo_train_held_out_accuracy`.
"""

from __future__ import annotations

from typing import Any

from ray.util.metrics import Gauge

from sp2dpo_ray.train.task import TrainTask

# of a line of metrics -> name of the gauge, what it is
GAUGES = {
    "step": ("sp2dpo_train_step", "Optimiser steps that are done"),
    "steps": ("sp2dpo_train_steps", "Optimiser steps of the whole training"),
    "loss": ("sp2dpo_train_loss", "Mean loss of the pairs since the last line"),
    "logratio/margins": ("sp2dpo_train_margin_nats", "Mean log-ratio margin, not scaled by beta"),
    "grad_norm": ("sp2dpo_train_gradient_norm", "Norm of the gradient before clipping"),
    "tokens_per_second": ("sp2dpo_train_tokens_per_second", "Tokens of all workers a second"),
    "held_out/accuracy": (
        "sp2dpo_train_held_out_accuracy",
        "Preference accuracy on the tuning half of the held-out pairs",
    ),
}


class Gauges:
    """Set from each line of metrics by the worker that writes them."""

    def __init__(self, task: TrainTask) -> None:
        self._tags = {"run": task.run, "arm": task.arm}
        self._gauges = {
            key: Gauge(name, description=text, tag_keys=("run", "arm"))
            for key, (name, text) in GAUGES.items()
        }

    def set(self, row: dict[str, Any]) -> None:
        figures = row | {"tokens_per_second": row["tokens"] / max(row["seconds"], 1e-9)}
        for key, gauge in self._gauges.items():
            if key in figures:
                gauge.set(figures[key], self._tags)
