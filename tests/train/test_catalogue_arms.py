"""Arms that are more than betas, on a real Ray: moving betas, weights, selections, probes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from sp2dpo_ray.core.artifact import open_artifact
from sp2dpo_ray.core.selections import fused
from sp2dpo_ray.errors import DataError
from sp2dpo_ray.modeling.encode import EncodedPair
from sp2dpo_ray.run import Run
from sp2dpo_ray.stages.arm_pairs import Known
from sp2dpo_ray.stages.train import train
from sp2dpo_ray.train.step import ALONE
from sp2dpo_ray.train.task import Pairs
from sp2dpo_ray.train.trajectory import Trajectory
from tests.train.test_training import prepared


def read(run: Run, arm: str, name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(run.path("train", arm, name)).to_pylist()
    return rows


def test_a_resumed_trajectory_is_that_of_an_undisturbed_one(tmp_path: Path) -> None:
    tokens = np.zeros(1, np.int32)
    encoded = [EncodedPair(f"p{i}", tokens, tokens, tokens) for i in range(4)]
    nothing = torch.zeros(4)
    pairs = Pairs(encoded, nothing, nothing, torch.linspace(0.1, 0.4, 4, dtype=torch.float64))

    def steps(log: Trajectory, first: int, last: int) -> None:
        for step in range(first, last + 1):
            trace = [((step + k) % 4, 0.01 * step, -0.5) for k in (0, 1)]
            assert log.add(step, trace, ALONE) == [0.01 * step] * 2

    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    whole = Trajectory(tmp_path / "whole", pairs, 0)
    steps(whole, 1, 6)
    whole.close()
    steps(Trajectory(tmp_path / "cut", pairs, 0), 1, 5)  # killed after step 5, saved at step 3
    resumed = Trajectory(tmp_path / "cut", pairs, 3)
    steps(resumed, 4, 6)
    resumed.close()
    one, two = (pq.read_table(tmp_path / name / "trajectory.parquet") for name in ("whole", "cut"))
    assert one.equals(two)
    assert one.num_rows == 12
    assert one["prior"][0].as_py() == pairs.beta[1].item()
    # a worker that is lost while it scores is replaced, and the new one closes once more
    Trajectory(tmp_path / "cut", pairs, 6).close()
    assert pq.read_table(tmp_path / "cut" / "trajectory.parquet").equals(one)


@pytest.mark.ray
@pytest.mark.slow
def test_every_beta_that_moved_can_be_read_afterwards(ray_cluster: None, demo_config: Path) -> None:
    run = prepared(demo_config, "train.epochs=2", "train.loss_options={hybrid: {a: 0.9}}")
    summary = train(run, "jmamp+hybrid")
    rows = read(run, "jmamp+hybrid", "trajectory.parquet")
    prior = {row["prompt_id"]: row["beta"] for row in read(run, "jmamp+hybrid", "betas.parquet")}
    assert len(rows) == 2 * len(prior) == 2 * summary["pairs"]
    for row in rows:
        assert row["prior"] == pytest.approx(prior[row["prompt_id"]], rel=1e-6)
        moved = row["prior"] * (1 + 0.9 * np.tanh(row["prior"] * row["margin"] / 2))
        assert row["beta"] == pytest.approx(min(max(moved, 0.03), 0.3), rel=1e-5)
    assert len({row["step"] for row in rows}) == summary["steps"]
    moved = [row for row in rows if abs(row["beta"] / row["prior"] - 1) > 1e-4]
    assert moved
    # the metrics are of the betas that were used
    lines = run.path("train", "jmamp+hybrid", "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    used = [row["beta"] for row in rows if row["step"] == last["step"]]
    assert last["beta"] == pytest.approx(np.mean(used), rel=1e-5)
    files = open_artifact(run.path("train", "jmamp+hybrid")).files
    assert "trajectory.parquet" in files
    assert any("tensorboard" in name for name in files)


@pytest.mark.ray
@pytest.mark.slow
def test_selections_share_their_probes_and_train_on_what_they_kept(
    ray_cluster: None, demo_config: Path
) -> None:
    run = prepared(demo_config, "train.workers=1")
    known = Known(run)
    half = train(run, "dpo:0.1/dual-margin:0.5")
    assert half["pairs"] == round(0.5 * len(known.ids))
    (probe,) = run.path("probes").glob("[!.]*")
    made = (probe / "manifest.json").stat().st_mtime_ns
    assert not (probe / "merged").exists()
    rank = fused(known.margin(), known.implicit())
    order = np.lexsort((np.array(known.ids), -rank))[: half["pairs"]]
    kept = [row["prompt_id"] for row in read(run, "dpo-0.1-dual-margin-0.5", "betas.parquet")]
    assert sorted(kept) == sorted(known.ids[place] for place in order)

    train(run, "jmamp/implicit-gap:0.3")
    assert (probe / "manifest.json").stat().st_mtime_ns == made  # the same probe
    small = [row["prompt_id"] for row in read(run, "jmamp-implicit-gap-0.3", "betas.parquet")]
    implicit = dict(zip(known.ids, np.abs(known.implicit()), strict=True))
    assert max(implicit[name] for name in small) <= min(
        gap for name, gap in implicit.items() if name not in small
    )

    # a curriculum trains in its own order, hard pairs supervised, and says what is not verified
    mixed = train(run, "jmamp/mixdpo")
    rows = read(run, "jmamp-mixdpo", "betas.parquet")
    assert mixed["pairs"] == len(rows) == len(known.ids)
    margin = dict(zip(known.ids, known.margin(), strict=True))
    assert np.diff([margin[row["prompt_id"]] for row in rows]).max() <= 0
    taught = [row["supervised"] for row in rows]
    assert taught == sorted(taught)
    assert sum(taught) == len(rows) - round(0.67 * len(rows))


@pytest.mark.ray
@pytest.mark.slow
def test_difficulty_is_of_students_that_did_not_see_the_pair(
    ray_cluster: None, demo_config: Path
) -> None:
    run = prepared(demo_config, "train.workers=1", "data.limit=24", "train.pairs_per_step=12")
    known = Known(run)
    found = known.difficulty()
    assert np.isfinite(found).all()
    expected = np.zeros(len(known.ids))
    probes = sorted(run.path("probes").glob("[!.]*"))
    assert len(probes) == 6
    for probe in probes:
        seen = set(pq.read_table(probe / "betas.parquet")["prompt_id"].to_pylist())
        table = pq.read_table(probe / "margins.parquet").to_pylist()
        margin = {row["prompt_id"]: row["margin"] for row in table}
        for place, name in enumerate(known.ids):
            if name not in seen:
                expected[place] += np.logaddexp(0, -0.01 * margin[name]) / 3
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.ray
@pytest.mark.slow
def test_weights_and_counted_tokens_train(ray_cluster: None, demo_config: Path) -> None:
    run = prepared(demo_config, "train.workers=1")
    train(run, "jmamp+madpo")
    weights = [row["weight"] for row in read(run, "jmamp+madpo", "betas.parquet")]
    assert min(weights) >= 1  # panel margins are small, where MADPO amplifies
    assert max(weights) > 1.01
    assert train(run, "confpo")["loss"] > 0
    scores = Run(run.config.model_validate(run.config.resolved | {
        "train": run.config.resolved["train"] | {"margin": "scores"}}))  # fmt: skip
    with pytest.raises(DataError, match=r"needs the columns \['score_chosen', 'score_rejected'\]"):
        train(scores, "jmamp+madpo")
