"""What is measured while training: sums over pairs, and where they are written.

In: losses and log-probabilities of batches. Out: lines of metrics.jsonl and TensorBoard events.
Invariant: a pair counts once in a mean, whatever the batches were; lines after a restored step are
dropped, so that a resumed run's log is that of an undisturbed one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from sp2dpo_ray.core.lines import read_json_lines
from sp2dpo_ray.objectives.pair_loss import PairLogps
from sp2dpo_ray.train.trackers import Tracker

# what is summed over the pairs of a step, under the names that DPO trainers share; margins and
# rewards: `logratio` is in nats, `rewards` is scaled by the pair's beta
METRICS = (
    "loss",
    "logratio/margins",
    "logratio/chosen",
    "logratio/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "rewards/chosen",
    "rewards/rejected",
    "logps/chosen",
    "logps/rejected",
    "beta",
    "pairs",
    "tokens",
    "computed_tokens",
    "response_tokens",
)
# these stay sums; `tokens` counts a prompt for each of its responses, as two rows would
COUNTS = frozenset({"pairs", "tokens", "computed_tokens", "response_tokens"})
BETA_PERCENTILES = (10, 50, 90)
TENSORBOARD = "tensorboard"


def new_sums(device: torch.device | None = None) -> Tensor:
    """Zeros in METRICS' order; (len(METRICS),) float64."""
    return torch.zeros(len(METRICS), dtype=torch.float64, device=device)


@torch.no_grad()
def pair_sums(
    losses_B: Tensor, logps: PairLogps, beta_B: Tensor, *, tokens: int, computed_tokens: int
) -> Tensor:
    """Sums of a batch in METRICS' order, on its device: reading them is the caller's pause."""
    chosen, rejected = logps.chosen_ratio, logps.rejected_ratio
    columns = (
        losses_B,
        logps.margin,
        chosen,
        rejected,
        (logps.margin > 0).float(),
        beta_B * (chosen - rejected),
        beta_B * chosen,
        beta_B * rejected,
        logps.chosen,
        logps.rejected,
        beta_B,
        torch.ones_like(losses_B),
    )
    sums = torch.stack([column.double().sum() for column in columns])
    responses = (logps.chosen_tokens + logps.rejected_tokens).sum().double()
    counts = torch.tensor([tokens, computed_tokens], dtype=torch.float64, device=sums.device)
    return torch.cat([sums, counts, responses[None]])


def means(sums: Tensor) -> dict[str, float]:
    """Metric sums as means over their pairs; counts stay counts."""
    named = dict(zip(METRICS, sums.tolist(), strict=True))
    pairs = max(named["pairs"], 1.0)
    return {name: value if name in COUNTS else value / pairs for name, value in named.items()}


def beta_percentiles(beta_B: Tensor) -> dict[str, float]:
    """The spread of the betas of all workers' pairs."""
    shares = torch.tensor([share / 100 for share in BETA_PERCENTILES], dtype=beta_B.dtype)
    values = torch.quantile(beta_B, shares).tolist()
    return {f"beta/p{n}": value for n, value in zip(BETA_PERCENTILES, values, strict=True)}


def write_hparams(folder: Path, settings: dict[str, Any], figures: dict[str, float]) -> None:
    """One line in TensorBoard's table of hyper-parameters, in the arm's own events."""
    plain = {
        name: value if isinstance(value, bool | int | float | str) else json.dumps(value)
        for name, value in settings.items()
    }
    board = SummaryWriter(str(folder / TENSORBOARD))
    writer = board._get_file_writer()
    for summary in hparams(plain, figures):
        writer.add_summary(summary)
    for name, value in figures.items():
        board.add_scalar(name, value)
    board.close()


class MetricsLog:
    """metrics.jsonl, one line a logged step, and the same for TensorBoard and other trackers."""

    def __init__(self, path: Path, done: int, trackers: Sequence[Tracker] = ()) -> None:
        kept = [row for row in read_json_lines(path) if row["step"] <= done] if done else []
        self._path = path
        path.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        self._board = SummaryWriter(str(path.parent / TENSORBOARD), purge_step=done + 1)
        self._trackers = trackers

    def write(self, row: dict[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        figures = {name: row[name] for name in row if name not in ("step", "steps", "note")}
        for name, value in figures.items():
            self._board.add_scalar(name, value, row["step"])
        for tracker in self._trackers:
            tracker.log(row["step"], figures)

    def close(self) -> None:
        self._board.close()
        for tracker in self._trackers:
            tracker.close()
