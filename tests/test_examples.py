"""The examples run as they stand, and what they print is true."""

from __future__ import annotations

import csv
import json
import math
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sp2dpo_ray import load_schedule
from tests.conftest import REPOSITORY

EXAMPLES = REPOSITORY / "examples"
NUMBER = r"(-?\d+\.?\d*)"


def run(name: str, cwd: Path, *arguments: str) -> str:
    """What an example prints; it is started away from the repository."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        capture_output=True, text=True, timeout=580, cwd=cwd,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def numbers(pattern: str, text: str) -> list[float]:
    """The numbers at the `#` of a pattern."""
    found = re.search(re.escape(pattern).replace(r"\#", NUMBER), text)
    assert found, f"{pattern!r} is not in {text!r}"
    return [float(value) for value in found.groups()]


def test_each_example_has_its_row() -> None:
    text = (EXAMPLES / "README.md").read_text()
    named = re.findall(r"^\| \[(\w+\.py)\]\(\1\) ", text, re.MULTILINE)
    assert sorted(named) == sorted(path.name for path in EXAMPLES.glob("*.py"))


def test_a_new_teacher(tmp_path: Path, demo_rows: list[dict[str, Any]]) -> None:
    told = run("a_new_teacher.py", tmp_path)
    lengths = [(len(row["chosen"]), len(row["rejected"])) for row in demo_rows]
    long = [(c, r) for c, r in lengths if c + r >= 90]
    short = len(lengths) - len(long) + 1  # and the one that the example adds
    asked, ok, refused = numbers("# calls: {'ok': #, 'refusal': #}", told)
    assert (asked, ok, refused) == (2 * len(demo_rows) + 2, 2 * len(long), 2 * short)
    gaps = [round(abs(c - r) / (c + r), 2) * round(c / (c + r), 2) for c, r in long]
    assert numbers("effective gap: mean #, largest #", told) == pytest.approx(
        [np.mean(gaps), max(gaps)], abs=5.1e-5
    )


def test_a_new_mapping(tmp_path: Path, demo_rows: list[dict[str, Any]]) -> None:
    told = run("a_new_mapping.py", tmp_path)
    pairs, mean, std = numbers("# pairs; the default: mean #, std #", told)
    assert pairs == len(demo_rows)
    found = {
        name: numbers(f"{name}: mean #, std #", told) for name in ("smooth", "squared", "careful")
    }
    # steep in the middle spreads betas; damping can only lower them
    assert found["smooth"][1] > std
    assert found["careful"][0] < mean
    assert found["squared"][0] < mean
    # the pair that smoothstep moves most, by hand: below the middle it goes down
    before, after = re.findall(r"moves most \S+: ([\d.]+) -> ([\d.]+)", told)[0]
    assert 0.03 < float(after) < float(before) < 0.165
    assert not list(tmp_path.iterdir())  # it writes nothing


@pytest.mark.ray
@pytest.mark.slow
def test_audit_a_preference_set(tmp_path: Path, demo_rows: list[dict[str, Any]]) -> None:
    told = run("audit_a_preference_set.py", tmp_path, "here")
    assert numbers("# pairs, # calls made now", told) == [264, 264 * 9]
    columns = ["beta_annotators_mean_ens", "category"]
    betas = load_schedule(tmp_path / "here" / "runs" / "audit", columns)
    categories = Counter(betas["category"].to_pylist())
    beta = betas["beta_annotators_mean_ens"].to_numpy()
    assert numbers("beta: # to #, mean #", told) == pytest.approx(
        [beta.min(), beta.max(), beta.mean()], abs=5.1e-4
    )
    # the panel of a_new_mapping.py, asked there without Ray, gives the same schedule
    alone = numbers("the default: mean #, std #", run("a_new_mapping.py", tmp_path))
    assert alone == pytest.approx([beta.mean(), beta.std()], abs=5.1e-5)

    # agreement, counted again from the sheet and the truth
    with (tmp_path / "here" / "filled.csv").open(encoding="utf-8", newline="") as file:
        sheet = list(csv.DictReader(file))
    wrong = {row["prompt_id"] for row in demo_rows if row["label_flipped"]}
    sample = [row for row in sheet if "sample" in row["why"].split()]
    # drawn by category: each speaks for its category's share of the schedule
    drawn = Counter(row["category"] for row in sample)
    speaking_for = [categories[row["category"]] / drawn[row["category"]] for row in sample]
    for reason in ("flipped", "conflict", "safety", "wording", "sample"):
        listed = [row for row in sheet if reason in row["why"].split()]
        weights = speaking_for if reason == "sample" else None
        right = np.average([row["prompt_id"] not in wrong for row in listed], weights=weights)
        share, *_, count = numbers(f"listed as {reason}: # (# to #, # pairs)", told)
        assert share == pytest.approx(right, abs=5.1e-3)
        assert count == len(listed)
    for teacher in ("alba", "bruno", "carla"):
        sure = [float(row[f"confidence_{teacher}_ens"]) >= 0.5 for row in sample]
        agreed = [s == (row["verdict"] == "chosen") for s, row in zip(sure, sample, strict=True)]
        share, *_ = numbers(f"{teacher}: the person's order # (# to #, # pairs)", told)
        assert share == pytest.approx(np.average(agreed, weights=speaking_for), abs=5.1e-3)
    weights = json.loads(told.partition("teacher_weights: ")[2])
    assert set(weights) == {"alba", "bruno", "carla"}
    # suspects are wrong more often than the fair sample
    (suspects,) = numbers("listed as flipped: #", told)
    (fair,) = numbers("listed as sample: #", told)
    assert suspects < fair


@pytest.mark.ray
@pytest.mark.slow
def test_train_trl_with_our_schedule(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    told = run("train_trl_with_our_schedule.py", tmp_path, "here")
    table = load_schedule(tmp_path / "here" / "runs" / "trl", ["beta_annotators_mean_ens"])
    beta = table["beta_annotators_mean_ens"].to_numpy()
    assert numbers("# pairs, beta # to #", told) == pytest.approx(
        [32, beta.min(), beta.max()], abs=5.1e-5
    )
    losses = {
        name: numbers(f"{name}: loss # -> #", told) for name in ("schedule", "constant")
    }  # the same pairs, order and student: what differs are the betas
    for before, after in losses.values():
        assert before == pytest.approx(math.log(2), abs=1e-6)
        assert after < before - 0.01
    assert abs(losses["schedule"][1] - losses["constant"][1]) > 1e-3
    one, other = (
        load_file(tmp_path / "here" / "out" / name / "model.safetensors") for name in losses
    )
    assert any((one[name] != other[name]).any() for name in one)
