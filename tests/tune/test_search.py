"""Searches on a real Ray: what is proposed, stopped, remembered; and what is refused before."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray

from sp2dpo_ray.config import load_config
from sp2dpo_ray.config.sweep import HalvingSection, RangeSection, SearchSection
from sp2dpo_ray.core.arms import parse_arm
from sp2dpo_ray.core.halves import prompts_of, tuning_half
from sp2dpo_ray.errors import ConfigError, TrainingError
from sp2dpo_ray.evaluate.compare import accuracy_of
from sp2dpo_ray.run import Run
from sp2dpo_ray.stages import STAGES
from sp2dpo_ray.stages.search import _try, arm_of
from sp2dpo_ray.tune.search import FINISHED, HALVED, Found, Record, Tell, best_of, run_search
from tests.processes import kill_when
from tests.train.test_training import prepared

SPACE = "beta_max: {low: 0.1, high: 0.6, log: true}, shape: {choices: [linear, power]}, " \
        "exponent: {low: 0.5, high: 3}"  # fmt: skip


def test_a_point_is_an_arm_with_what_it_reads() -> None:
    point: dict[str, Any] = {"shape": "power", "exponent": 2.34567, "beta_max": 0.3}
    assert arm_of(point) == "map:beta_max=0.3,exponent=2.346,shape=power"
    assert arm_of(point | {"shape": "linear"}) == "map:beta_max=0.3,shape=linear"
    assert arm_of({"damping": "none", "damping_lambda": 3.0}) == "map:damping=none"
    assert parse_arm(arm_of(point)).derived is not None


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ("beta_top: {low: 1, high: 2}", r"\['beta_top'\] are unknown; there are"),
        ("beta_max: {low: 0.5, high: 0.1}", "low must be below high, got 0.5 and 0.1"),
        ("beta_max: {low: 0, high: 0.1, log: true}", "a logarithm needs low above 0"),
        ("exponent: {low: 1, high: 2}", "exponent belongs to shape power; add"),
        ("damping_lambda: {low: 1, high: 2}", "damping_lambda needs damping"),
        ("shape: {choices: []}", "at least 1 item"),
        (
            "estimator: {choices: [jmamp, debiased]}, damping: {choices: [none, exp]}",
            r"estimators \['debiased'\] use all calls at once and know no damping",
        ),
        (
            "beta_min: {low: 0.01, high: 0.2}, beta_max: {low: 0.1, high: 0.6}",
            "beta_min must end where beta_max begins",
        ),
    ],
)
def test_a_space_that_cannot_be_is_refused(demo_config: Path, space: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(str(demo_config), (f"sweep.search={{space: {{{space}}}}}",))


def test_the_best_is_of_those_that_finished(tmp_path: Path) -> None:
    halved = Found({"beta_max": 0.1}, HALVED, 0.9, 3)
    with pytest.raises(TrainingError, match=r"no trial of the search finished: .*halved.*margin"):
        best_of([halved, Found({"beta_max": 0.2}, "failed", None, 9, "margin is not finite")])
    good = Found({"beta_max": 0.3}, FINISHED, 0.6, 9)
    assert best_of([halved, good, Found({"beta_max": 0.4}, FINISHED, 0.5, 9)]) == good
    # what was begun and not ended is known after a kill, and a cut line is passed over
    record = Record(tmp_path / "deep" / "trials.jsonl")
    for found in (Found({"a": 1}, "begun"), Found({"a": 2}, "begun"), Found({"a": 1}, FINISHED, 1)):
        record.add(found)
    with record.path.open("a") as file:
        file.write('{"values": {"a": 3}, "sta')
    ended, begun = record.read()
    assert [each.values for each in ended] == [{"a": 1}]
    assert begun == [{"a": 2}]


def test_a_point_that_cannot_be_is_that_points_failure(demo_config: Path) -> None:
    run = Run(load_config(str(demo_config)))
    with pytest.raises(TrainingError, match=r"map:gate_low=0\.3 cannot be: "):
        _try(run, {"gate_low": 0.3}, lambda step, objective: None, 1)


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_search_goes_on_and_its_best_stands_in_the_table(
    ray_cluster: None, demo_config: Path
) -> None:
    halving = "halving: {grace: 0.3, factor: 2}"
    narrow = (
        "train.workers=1",
        "sweep.arms=['dpo:0.1', jmamp]",
        f"sweep.search={{trials: 5, {halving}, space: {{{SPACE}}}}}",
    )
    run = prepared(demo_config, *narrow)
    flags = [part for each in narrow for part in ("--set", each)]
    kill_when(lambda: ended(run), ["sweep", str(demo_config), *flags], within_s=240)
    before = ended(run)
    assert before
    stamps = finished(run)

    summary = STAGES["sweep"](run)
    after = ended(run)
    assert len(after) == summary["trials"] == 5
    assert before == after[: len(before)]  # nothing on record was tried again
    assert stamps.items() <= finished(run).items()
    rows = {row["arm"]: row for row in summary["table"]}
    assert next(iter(rows)) == summary["baseline"] == "dpo:0.1"
    assert set(rows) == {"dpo:0.1", "jmamp", summary["searched"]}
    assert summary["searched"].startswith("map:beta_max=")

    # the objective is what the tuning half says of the arm, and the best is best there
    best = max((each for each in after if each["state"] == FINISHED), key=lambda e: e["objective"])
    assert arm_of(best["values"]) == summary["searched"]
    folder = run.path("train", parse_arm(summary["searched"]).folder)
    table = pq.read_table(folder / "eval_pairs.parquet")
    half = tuning_half(prompts_of(run.pairs_file("eval"), table["prompt_id"].to_pylist()))
    assert best["objective"] == accuracy_of(table["margin"].to_numpy()[half]).mean()
    trials = json.loads(run.path("sweep", "trials.json").read_text())
    assert len(trials["search"]) == 5
    assert all(each["arm"].startswith("map:") for each in trials["search"])
    # looks on the way are in the metrics, and those at the end agree with the held-out scores
    looks = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert any("held_out/accuracy" in row for row in looks)


@ray.remote(num_cpus=1, scheduling_strategy="DEFAULT")  # outside of the trial's own share
class Hall:
    """What a training holds: a core, for as long as somebody owns it."""

    def here(self) -> bool:
        return True


@pytest.mark.ray
def test_a_trial_that_is_halved_lets_go_of_its_cores(ray_cluster: None, tmp_path: Path) -> None:
    """Two trials at once on two cores: the next one only begins when a stopped one's core is
    free again."""
    section = SearchSection(
        space={"beta_max": RangeSection(low=0.1, high=0.6)}, trials=6, sampler="random",
        halving=HalvingSection(grace=0.1, factor=2),
    )  # fmt: skip

    def work(values: dict[str, Any], tell: Tell) -> float:
        hall = Hall.remote()  # owned by the trial, as the workers of a training are
        ray.get(hall.here.remote())
        for step in range(1, 10):
            tell(step, values["beta_max"])
            time.sleep(0.1)
        return float(values["beta_max"])

    record = Record(tmp_path / "trials.jsonl")
    found = run_search(
        section, work, steps=10, at_once=2, folder=tmp_path / "tune", record=record,
        watch=lambda: None,
    )  # fmt: skip
    assert len(found) == 6
    states = {each.state for each in found}
    assert states == {FINISHED, HALVED}
    assert all(each.step < 10 for each in found if each.state == HALVED)
    best = max(found, key=lambda each: each.values["beta_max"])
    assert best_of(found) == best
    # on record: asked for as many again, nothing is run
    again = run_search(
        section, lambda values, tell: pytest.fail("tried again"), steps=10, at_once=2,
        folder=tmp_path / "tune", record=record, watch=lambda: None,
    )  # fmt: skip
    assert again == found


def ended(run: Run) -> list[dict[str, Any]]:
    rows = []
    for path in run.path("search").glob("*/trials.jsonl"):
        lines = [line for line in path.read_text().splitlines() if line.endswith("}")]
        rows += [row for row in map(json.loads, lines) if row["state"] != "begun"]
    return rows


def finished(run: Run) -> dict[str, int]:
    found = run.path("train").glob("map-*/manifest.json")
    return {path.parent.name: path.stat().st_mtime_ns for path in found}
