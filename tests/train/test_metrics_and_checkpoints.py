"""What is logged, and what a checkpoint that was damaged leads to."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ray.exceptions import ActorDiedError
from ray.train import Checkpoint
from ray.train.v2.api.exceptions import WorkerGroupError

from sp2dpo_ray.config import LoraSection, TrainSection
from sp2dpo_ray.errors import TrainingError
from sp2dpo_ray.modeling.encode import EncodedPair
from sp2dpo_ray.modeling.student import student_to_train, trainable
from sp2dpo_ray.objectives.pair_loss import PairLogps
from sp2dpo_ray.train.checkpoint import restore_state, save_state, scratch
from sp2dpo_ray.train.held_out import interim_scores
from sp2dpo_ray.train.launch import _cause
from sp2dpo_ray.train.loss import Loss
from sp2dpo_ray.train.metrics import (
    METRICS,
    MetricsLog,
    beta_percentiles,
    means,
    new_sums,
    pair_sums,
)
from sp2dpo_ray.train.step import ALONE, Computing
from sp2dpo_ray.train.strategies import Setup
from sp2dpo_ray.train.strategies.replicated import OPTIMIZER, WEIGHTS, Replicated
from sp2dpo_ray.train.task import Pairs


def test_no_pair_to_score_on_the_way_is_no_score() -> None:
    """One held-out pair alone is of the half that reports, not of the half that is looked at."""
    one = EncodedPair("p", [1], [2], [3])
    none = torch.zeros(1)
    model: Any = SimpleNamespace(model=torch.nn.Identity(), score=None)
    how = Computing(0, torch.device("cpu"), 64, "plain")
    assert interim_scores(model, Pairs([one], none, none, none), [], how, ALONE) == {}


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
    with path.open("a") as file:
        file.write('{"step": 4, "st')  # the disk was full
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


def fresh(student: Any) -> Replicated:
    model = student_to_train(student, LoraSection(r=2, dropout=0), "fp32", "plain", 0, False)
    options = TrainSection(learning_rate=0.1, warmup_ratio=0)
    return Replicated(model, Setup(options, torch.device("cpu"), 10))


def advance(strategy: Replicated, steps: int) -> None:
    for _ in range(steps):
        for weight in trainable(strategy.model):
            weight.grad = torch.ones_like(weight)
        strategy.step()


def save(folder: Path, step: int, strategy: Replicated) -> Checkpoint:
    made = save_state(strategy, Loss("logistic"), step, ALONE, folder.parent)
    assert made is not None
    shutil.move(made.path, folder)
    return Checkpoint.from_directory(folder)


def equal(one: Replicated, other: dict[str, torch.Tensor]) -> bool:
    found = one.trained()
    return found.keys() == other.keys() and all(torch.equal(found[k], other[k]) for k in other)


@pytest.mark.parametrize("damage", ["altered", "cut off", "missing", "no position"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    tiny_student: Any, tmp_path: Path, damage: str
) -> None:
    state = fresh(tiny_student)
    advance(state, 2)
    save(tmp_path / "checkpoint_2026-01-01_10-00-00.1", 2, state)
    expected = {name: weight.clone() for name, weight in state.trained().items()}
    advance(state, 2)
    newest = save(tmp_path / "checkpoint_2026-01-01_11-00-00.2", 4, state)
    folder = Path(newest.path)
    if damage == "altered":
        content = bytearray((folder / WEIGHTS).read_bytes())
        content[-1] ^= 1
        (folder / WEIGHTS).write_bytes(content)
    elif damage == "cut off":
        (folder / OPTIMIZER).write_bytes((folder / OPTIMIZER).read_bytes()[:100])
    elif damage == "missing":
        (folder / WEIGHTS).unlink()
    else:
        (folder / "part-0.json").write_text("{")
    other = fresh(tiny_student)
    step, note = restore_state(newest, other, Loss("logistic"))
    assert step == 2
    assert "checkpoint_2026-01-01_11-00-00.2 is not whole" in note
    assert "going on from step 2" in note
    assert equal(other, expected)
    advance(other, 2)  # optimiser and scheduler are those of that step, too
    assert equal(other, state.trained())
    assert other.learning_rate == state.learning_rate


def test_without_a_whole_checkpoint_training_says_so(tiny_student: Any, tmp_path: Path) -> None:
    state = fresh(tiny_student)
    only = save(tmp_path / "checkpoint_a", 1, state)
    (tmp_path / "checkpoint_a" / OPTIMIZER).write_bytes(b"")
    with pytest.raises(TrainingError, match=r"optimizer\.pt is altered.*Remove .* to train from"):
        restore_state(only, state, Loss("logistic"))


def test_a_whole_checkpoint_is_taken_without_a_word(tiny_student: Any, tmp_path: Path) -> None:
    state = fresh(tiny_student)
    assert restore_state(save(tmp_path / "checkpoint_a", 7, state), state, Loss("logistic")) == (
        7,
        "",
    )


def test_what_a_killed_worker_left_is_removed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    arm = tmp_path / "train" / "jmamp"
    mine, others = scratch(arm, 0), (scratch(arm, 1), scratch(tmp_path / "elsewhere", 0))
    for folder in (mine, *others):
        (folder / "step-5").mkdir()
    assert scratch(arm, 0) == mine
    assert list(mine.iterdir()) == []
    assert all(len(list(folder.iterdir())) == 1 for folder in others)


@pytest.mark.parametrize("damage", ["a part is missing", "another step's part"])
def test_a_checkpoint_of_shares_needs_every_part(
    tiny_student: Any, tmp_path: Path, damage: str
) -> None:
    state = fresh(tiny_student)
    newest = save(tmp_path / "checkpoint_b", 4, state)
    first = tmp_path / "checkpoint_b" / "part-0.json"
    content = json.loads(first.read_text())
    first.write_text(json.dumps(content | {"parts": 2}))
    if damage == "another step's part":
        other = content | {"step": 2, "files": {}}
        (tmp_path / "checkpoint_b" / "part-1.json").write_text(json.dumps(other))
    with pytest.raises(TrainingError, match=r"part-1\.json|its parts are of steps 4 and 2"):
        restore_state(newest, state, Loss("logistic"))


def test_the_cause_of_a_failure_is_the_first_workers_own(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    error = WorkerGroupError("two workers failed", {1: RuntimeError("later"), 0: full})
    assert _cause(error) is full


def test_the_loss_of_a_worker_is_the_cause_of_what_the_others_say() -> None:
    lost = ActorDiedError()
    meeting = RuntimeError("Connection closed by peer")
    assert _cause(WorkerGroupError("two workers failed", {0: meeting, 1: lost})) is lost
