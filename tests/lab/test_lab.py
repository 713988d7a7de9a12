"""The testbed end to end: students, measures, the table, and that a second call runs nothing."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sp2dpo_ray.lab.learner import HOW, encoded, new_student, sample, taught_student
from sp2dpo_ray.lab.table import markdown, rows_of
from sp2dpo_ray.lab.trial import Measured, run_trial
from sp2dpo_ray.lab.world import END, WORLDS, draw_pair, draw_prompt, worth
from sp2dpo_ray.modeling.forward import Scorer
from sp2dpo_ray.stages.lab import lab
from sp2dpo_ray.train.step import pair_logps

SMALL = replace(WORLDS["noisy"], pairs=96, prompts=24)


@pytest.fixture(scope="module")
def student() -> Any:
    return taught_student(0, steps=60)


def test_teaching_teaches(student: Any) -> None:
    draw = np.random.default_rng(5)
    prompts = [draw_prompt(draw) for _ in range(64)]

    def mean_worth(model: Any) -> float:
        samples = sample(model, prompts, 2, seed=0)
        return float(np.mean([worth(p, r) for p, row in zip(prompts, samples, strict=True)
                              for r in row]))  # fmt: skip

    torch.manual_seed(0)
    assert mean_worth(student) > mean_worth(new_student().eval()) + 0.02


@torch.no_grad()
def test_samples_follow_the_models_probabilities(student: Any) -> None:
    """First tokens of many samples against the softmax, and END closes a response."""
    asked = draw_prompt(np.random.default_rng(1))
    (found,) = sample(student, [asked], 4000, seed=3)
    logits = student(input_ids=torch.from_numpy(asked).long()[None]).logits[0, -1]
    expected = logits.softmax(-1).numpy()
    counts = np.bincount([response[0] for response in found if len(response)],
                         minlength=len(expected))  # fmt: skip
    assert np.abs(counts / 4000 - expected).max() < 4 * math.sqrt(0.25 / 4000)
    assert all((response[:-1] != END).all() for response in found)


def test_the_reference_is_the_student_itself(student: Any) -> None:
    draw = np.random.default_rng(2)
    pairs = encoded(
        student, [draw_pair(SMALL, draw) for _ in range(16)], [str(i) for i in range(16)]
    )
    with torch.no_grad():
        margin = pair_logps(Scorer(student), pairs, list(range(16)), HOW).margin
    assert margin.abs().max() < 1e-4


def test_a_trial_is_reproducible_and_arms_differ(student: Any) -> None:
    arms = ("dpo:0.1", "jmamp", "jmamp+hybrid")
    one = run_trial(student, SMALL, 0, arms)
    two = run_trial(student, SMALL, 0, arms[1:2])
    same = {k: v for k, v in one["jmamp"].json.items() if k != "seconds"}
    assert same == {k: v for k, v in two["jmamp"].json.items() if k != "seconds"}
    assert one["jmamp"].json != one["dpo:0.1"].json
    assert one["dpo:0.1"].mean_beta == pytest.approx(0.1)
    assert one["jmamp"].won_M.shape == (24,)


def measured(won: np.ndarray, **changes: Any) -> Measured:
    outcome = np.repeat(won[:, None], 4, axis=1).round()
    plain: dict[str, Any] = {
        "won_M": won, "outcome_MC": outcome, "longer_MC": np.zeros_like(outcome), "worth": 0.5,
        "forbidden": 0.0, "length": 7.0, "labelled": 0.6, "true": 0.7, "mean_beta": 0.1,
        "seconds": 1.0,
    }  # fmt: skip
    return Measured(**plain | changes)


def test_the_baseline_is_the_best_global_beta_and_length_is_taken_out() -> None:
    draw = np.random.default_rng(0)
    low, high = (np.clip(draw.normal(mean, 0.1, 200), 0, 1) for mean in (0.4, 0.6))
    # wins only where it is longer
    longer = draw.choice([-2.0, 2.0], size=(200, 4))
    wordy = measured(high, outcome_MC=(longer > 0).astype(float), longer_MC=longer + 1)
    trials = {"w": {seed: {"dpo:0.1": measured(low), "dpo:0.3": measured(high),
                           "dpo:0.3+cdpo": measured(high + 0.1), "jmamp": wordy}
                    for seed in (0, 1)}}  # fmt: skip
    rows = {row.arm: row for row in rows_of(trials)}
    assert next(iter(rows)) == "dpo:0.3"
    assert rows["dpo:0.3"].verdict == "baseline"
    assert rows["dpo:0.1"].verdict == "worse"
    assert rows["dpo:0.3+cdpo"].verdict == "better"
    assert rows["jmamp"].verdict == "not told apart"
    assert rows["jmamp"].controlled.mean < 0.45  # a win at +3, a loss at -1: at 0 closer to a loss
    assert "dpo:0.3 was the best global beta on other prompts" in markdown(
        list(rows.values()), {"w": "a world"}
    )


@pytest.mark.ray
def test_the_command_makes_table_and_figure_and_runs_nothing_twice(
    ray_cluster: None, tmp_path: Path
) -> None:
    given: dict[str, Any] = {
        "worlds": ("clean",), "arms": ("dpo:0.1", "jmamp"), "seeds": 1,
        "changes": ("pairs=64", "prompts=16"),
    }  # fmt: skip
    summary = lab(tmp_path, **given)
    assert summary["trials"] == 1
    assert {row["arm"] for row in summary["rows"]} == {"dpo:0.1", "jmamp"}
    table = json.loads((tmp_path / "table.json").read_text())
    assert table["worlds"][0]["pairs"] == 64
    figure = (tmp_path / "figure.svg").read_bytes()
    assert b"<svg" in figure
    assert "| jmamp |" in (tmp_path / "table.md").read_text()
    (trial,) = (tmp_path / "trials").iterdir()
    before = trial.stat().st_mtime_ns
    again = lab(tmp_path, **given)
    assert again["rows"] == summary["rows"]
    assert trial.stat().st_mtime_ns == before
    assert (tmp_path / "figure.svg").read_bytes() == figure
