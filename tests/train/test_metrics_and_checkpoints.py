"""What is logged, and what a checkpoint that was damaged leads to."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from ray.train import Checkpoint
from ray.train.v2.api.exceptions import WorkerGroupError

from sp2dpo_ray.config import LoraSection
from sp2dpo_ray.errors import TrainingError
from sp2dpo_ray.modeling.student import add_adapter, load_model, trainable
from sp2dpo_ray.objectives.pair_loss import PairLogps
from sp2dpo_ray.train.checkpoint import ADAPTER, OPTIMIZER, POSITION, restore_state, saved_state
from sp2dpo_ray.train.launch import _cause
from sp2dpo_ray.train.metrics import (
    METRICS,
    MetricsLog,
    beta_percentiles,
    means,
    new_sums,
    pair_sums,
)


def test_means_are_over_pairs_however_they_were_batched() -> None:
    draw = torch.Generator().manual_seed(0)
    values = torch.randn(6, 9, generator=draw, dtype=torch.float64)
    beta = torch.linspace(0.03, 0.3, 9, dtype=torch.float64)
    losses = torch.rand(9, generator=draw, dtype=torch.float64)

    def sums(rows: slice) -> torch.Tensor:
        logps = PairLogps(*values[:4, rows], *(values[4:, rows].abs() * 10).long())
        return pair_sums(losses[rows], logps, beta[rows], tokens=7, computed_tokens=5)

    whole = means(sums(slice(0, 9)))
    parts = means(new_sums() + sums(slice(0, 2)) + sums(slice(2, 9)))
    for name in set(METRICS) - {"tokens", "computed_tokens"}:
        assert parts[name] == pytest.approx(whole[name], rel=1e-12), name
    assert (parts["tokens"], parts["computed_tokens"], parts["pairs"]) == (14, 10, 9)
    chosen, rejected = values[0] - values[2], values[1] - values[3]
    assert whole["logratio/margins"] == pytest.approx((chosen - rejected).mean().item())
    assert whole["rewards/margins"] == pytest.approx((beta * (chosen - rejected)).mean().item())
    assert whole["rewards/accuracies"] == ((chosen > rejected).double().mean()).item()


def test_beta_percentiles() -> None:
    beta = torch.arange(101, dtype=torch.float64) / 100
    assert beta_percentiles(beta) == pytest.approx(
        {"beta/p10": 0.1, "beta/p50": 0.5, "beta/p90": 0.9}
    )


def test_the_log_goes_on_where_the_checkpoint_was(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, 0)
    for step in (1, 2, 3):
        log.write({"step": step, "steps": 4, "loss": step / 10})
    log.close()
    again = MetricsLog(path, 2)  # step 3 was lost with the worker
    again.write({"step": 3, "steps": 4, "loss": 0.9, "note": "going on from step 2"})
    again.close()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["step"], row["loss"]) for row in rows] == [(1, 0.1), (2, 0.2), (3, 0.9)]
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    shown = {event.step: event.value for event in events.Scalars("loss")}
    assert shown == pytest.approx({1: 0.1, 2: 0.2, 3: 0.9})


# -- checkpoints ----------------------------------------------------------------------------------


def parts(student: Any) -> tuple[Any, Any, Any]:
    model = add_adapter(load_model(student, "fp32"), LoraSection(r=2, dropout=0), seed=0)
    optimizer = torch.optim.AdamW(trainable(model), lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
    return model, optimizer, scheduler


def advance(model: Any, optimizer: Any, scheduler: Any, steps: int) -> None:
    for _ in range(steps):
        for weight in trainable(model):
            weight.grad = torch.ones_like(weight)
        optimizer.step()
        scheduler.step()


def save(folder: Path, step: int, *state: Any) -> Checkpoint:
    with saved_state(*state, step) as checkpoint, checkpoint.as_directory() as name:
        folder.mkdir(parents=True)
        for file in Path(name).iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
    return Checkpoint.from_directory(folder)


@pytest.mark.parametrize("damage", ["altered", "cut off", "missing", "no position"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    tiny_student: Any, tmp_path: Path, damage: str
) -> None:
    state = parts(tiny_student)
    advance(*state, 2)
    save(tmp_path / "checkpoint_2026-01-01_10-00-00.1", 2, *state)
    expected = [weight.detach().clone() for weight in trainable(state[0])]
    advance(*state, 2)
    newest = save(tmp_path / "checkpoint_2026-01-01_11-00-00.2", 4, *state)
    folder = Path(newest.path)
    if damage == "altered":
        content = bytearray((folder / ADAPTER).read_bytes())
        content[-1] ^= 1
        (folder / ADAPTER).write_bytes(content)
    elif damage == "cut off":
        (folder / OPTIMIZER).write_bytes((folder / OPTIMIZER).read_bytes()[:100])
    elif damage == "missing":
        (folder / ADAPTER).unlink()
    else:
        (folder / POSITION).write_text("{")
    fresh = parts(tiny_student)
    step, note = restore_state(newest, *fresh)
    assert step == 2
    assert "checkpoint_2026-01-01_11-00-00.2 is not whole" in note
    assert "going on from step 2" in note
    for one, other in zip(trainable(fresh[0]), expected, strict=True):
        assert torch.equal(one, other)
    advance(*fresh, 2)  # optimiser and scheduler are those of that step, too
    for one, other in zip(trainable(fresh[0]), trainable(state[0]), strict=True):
        assert torch.equal(one, other)


def test_without_a_whole_checkpoint_training_says_so(tiny_student: Any, tmp_path: Path) -> None:
    state = parts(tiny_student)
    only = save(tmp_path / "checkpoint_a", 1, *state)
    (tmp_path / "checkpoint_a" / OPTIMIZER).write_bytes(b"")
    with pytest.raises(TrainingError, match=r"optimizer\.pt is altered.*Remove .* to train from"):
        restore_state(only, *state)


def test_a_whole_checkpoint_is_taken_without_a_word(tiny_student: Any, tmp_path: Path) -> None:
    state = parts(tiny_student)
    assert restore_state(save(tmp_path / "checkpoint_a", 7, *state), *state) == (7, "")


def test_the_cause_of_a_failure_is_the_first_workers_own(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    error = WorkerGroupError("two workers failed", {1: RuntimeError("later"), 0: full})
    assert _cause(error) is full
