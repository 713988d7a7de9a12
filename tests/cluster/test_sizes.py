"""What a cluster must hold: closed forms, and the command on the demo."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from sp2dpo_ray.cluster.sizes import (
    BUSY,
    BUSY_GENERATING,
    CALLS_A_CORE,
    Hosted,
    Machine,
    Need,
    Work,
    gib_of_weights,
    gpu_machine,
    needs,
    read_machines,
    sized,
)
from sp2dpo_ray.errors import ConfigError
from tests.conftest import REPOSITORY

WORK = Work(
    tokens=30_000_000, train_tokens=28_000_000, parameters=4e9, gpus=4, arms=5, epochs=2,
    all_weights=False, recomputes=False, precision="bf16", shards=False,
    calls_per_second=100.0, calls=720_000, actors=2, annotate_hours=2.0, annotate_usd=70.0,
    answer_tokens=0, judge_hours=0.0, judge_usd=0.0, rates={},
)  # fmt: skip
GPU = Machine("x4", "gpu-4", 48, 20.0, 8.0, gpus=4, gib=80, tflops=312)
BIG = Machine("x8", "gpu-8", 96, 40.0, None, gpus=8, gib=80, tflops=312)
SMALL = {
    "head": Machine("head", "small", 8, 0.4, 0.1),
    "annotate": Machine("annotate", "small", 8, 0.4, 0.1),
}
MACHINES = SMALL | {"x4": GPU, "x8": BIG}


def by_stage(found: list[Need]) -> dict[str, Need]:
    return {need.stage: need for need in found}


def test_hours_and_money_are_operations_over_rates() -> None:
    found = by_stage(needs(WORK, MACHINES, GPU, within_hours=None))
    rate = 4 * 312e12 * BUSY
    assert found["reference"].hours == pytest.approx(2 * 4e9 * 30e6 / rate / 3600)
    assert found["train (one arm)"].hours == pytest.approx(4 * 4e9 * 56e6 / rate / 3600)
    assert found["sweep"].hours == pytest.approx(5 * found["train (one arm)"].hours)
    assert found["sweep"].usd == pytest.approx(found["sweep"].hours * 20)
    assert found["sweep"].spot == pytest.approx(found["sweep"].hours * 8)
    assert found["annotate"].fees == 70
    whole = sum(found[name].hours for name in ("annotate", "reference", "sweep"))
    assert found["head"].hours == pytest.approx(whole)
    assert found["head"].spot == found["head"].usd  # it is bought


def test_all_weights_and_recomputation_cost_more_and_measured_rates_are_believed() -> None:
    arm = "train (one arm)"
    plain = by_stage(needs(WORK, MACHINES, GPU, within_hours=None))[arm].hours
    for change, factor in (({"all_weights": True}, 6 / 4), ({"recomputes": True}, 6 / 4)):
        found = by_stage(needs(replace(WORK, **change), MACHINES, GPU, within_hours=None))
        assert found[arm].hours == pytest.approx(plain * factor)
    seen = replace(WORK, rates={"train": 5_000.0})
    found = by_stage(needs(seen, MACHINES, GPU, within_hours=None))
    assert found[arm].hours == pytest.approx(56e6 / (5_000 * 4) / 3600)
    assert found[arm].basis == "5,000 tokens a second and GPU, measured"
    assert "assumed" in found["reference"].basis


@pytest.mark.parametrize(("within", "side"), [(None, 1), (1e9, 1), (1e-9, 5)])
def test_arms_go_side_by_side_until_they_fit(within: float | None, side: int) -> None:
    found = by_stage(needs(WORK, MACHINES, GPU, within_hours=within))
    assert found["sweep"].nodes == side
    assert found["sweep"].hours == pytest.approx(
        math.ceil(5 / side) * found["train (one arm)"].hours
    )


def test_two_arms_of_four_share_a_machine_of_eight() -> None:
    found = by_stage(needs(WORK, {**SMALL, "x8": BIG}, BIG, within_hours=None))
    assert found["sweep"].nodes == 1
    assert found["sweep"].hours == pytest.approx(3 * found["train (one arm)"].hours)
    assert found["sweep"].spot is None  # nobody says what it costs


def test_an_arm_larger_than_a_machine_takes_several() -> None:
    wide = replace(WORK, gpus=16)
    assert gpu_machine(wide, MACHINES, None) is BIG
    found = by_stage(needs(wide, MACHINES, BIG, within_hours=None))
    assert {found[name].nodes for name in ("reference", "train (one arm)", "sweep")} == {2}
    assert gpu_machine(WORK, MACHINES, None) is GPU
    assert gpu_machine(WORK, MACHINES, "x8") is BIG
    with pytest.raises(ConfigError, match=r"--gpu: 'b200' is unknown; there are \['x4', 'x8'\]"):
        gpu_machine(WORK, MACHINES, "b200")


def test_students_that_answer_are_judged_at_the_judges_limits() -> None:
    assert not {"generate", "evaluate"} & set(
        by_stage(needs(WORK, MACHINES, GPU, within_hours=None))
    )
    asked = replace(WORK, answer_tokens=1_000_000, judge_hours=3.0, judge_usd=9.0)
    found = by_stage(needs(asked, MACHINES, GPU, within_hours=None))
    rate = 4 * 312e12 * BUSY_GENERATING
    assert found["generate"].hours == pytest.approx(2 * 4e9 * 1e6 / rate / 3600)
    assert (found["evaluate"].hours, found["evaluate"].fees) == (3.0, 9.0)


def test_too_few_actors_are_what_takes_the_hours() -> None:
    """Three teachers of 300 calls a second each want five actors; two make 400 calls a second."""
    fast = replace(WORK, calls_per_second=900.0, calls=7_200_000)
    found = by_stage(needs(fast, MACHINES, GPU, within_hours=None))["annotate"]
    assert found.hours == pytest.approx(7_200_000 / (2 * CALLS_A_CORE) / 3600)
    assert (found.nodes, "set annotate.actors: 5" in found.basis) == (1, True)
    enough = by_stage(needs(replace(fast, actors=5), MACHINES, GPU, within_hours=None))["annotate"]
    assert (enough.hours, enough.nodes) == (2.0, 2)  # the limits', on two nodes of four cores each
    assert "set annotate" not in enough.basis


def test_teachers_on_our_own_gpus_are_needs_too() -> None:
    teacher = Hosted("own", 16, 8e9, 9_000_000, 400_000)
    nameless = replace(teacher, name="what", parameters=None)
    work = replace(WORK, hosted=(teacher, nameless, replace(teacher, name="done", prompt_tokens=0)))
    found = by_stage(needs(work, MACHINES, BIG, within_hours=None))
    seconds = 2 * 8e9 * (9e6 / BUSY + 4e5 / BUSY_GENERATING) / (312e12 * 16)
    own = found["teacher own"]
    assert (own.group, own.nodes, own.hours) == ("x8", 2, pytest.approx(seconds / 3600))
    assert "assumed" in own.basis
    assert "hours not known" in found["teacher what"].basis
    assert "teacher done" not in found
    made = sized(
        "groups:\n  x8:\n    max_workers: 0\n", needs(work, MACHINES, BIG, within_hours=None)
    )
    assert made == "groups:\n  x8:\n    max_workers: 2\n"


def test_weights_in_memory() -> None:
    assert gib_of_weights(WORK) == pytest.approx(4e9 * 2 / 2**30)
    whole = replace(WORK, all_weights=True)
    assert gib_of_weights(whole) == pytest.approx(4e9 * 16 / 2**30)
    assert gib_of_weights(replace(whole, shards=True)) == pytest.approx(4e9 * 16 / 2**30 / 4)


@pytest.mark.parametrize("cloud", ["aws", "gcp", "azure"])
def test_groups_are_those_of_the_cluster_files(cloud: str) -> None:
    machines, source = read_machines(cloud, None)
    text = (REPOSITORY / "cluster" / "clouds" / f"{cloud}.yaml").read_text()
    types = yaml.safe_load(text)["available_node_types"]
    assert set(types) == set(machines)
    for name, node in types.items():
        assert machines[name].type in str(node["node_config"])
        assert machines[name].gpus == node["resources"].get("GPU", 0)
        if name != "head":
            assert machines[name].cpus == node["resources"]["CPU"]
    assert "prices of 20" in source
    gpu = gpu_machine(WORK, machines, "h100_x8")
    made = yaml.safe_load(sized(text, needs(WORK, machines, gpu, within_hours=None)))
    most = {name: node.get("max_workers") for name, node in made["available_node_types"].items()}
    assert {name for name, count in most.items() if count} == {"annotate", "h100_x8"}
    assert made["max_workers"] == 2
    before = yaml.safe_load(text)
    for one in (made, before):
        one.pop("max_workers")
        for node in one["available_node_types"].values():
            node.pop("max_workers", None)
    assert made == before  # nothing else moved


def test_prices_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "home: {head: {type: a, cpus: 1, usd: 0}, annotate: {type: a, cpus: 1, eur: 0}}"
    )
    with pytest.raises(ConfigError, match=r"mine\.yaml: home: .*eur"):
        read_machines("home", file)
    file.write_text("home: {head: {type: a, cpus: 1, usd: 0}}")
    with pytest.raises(ConfigError, match=r"groups \['annotate'\] are missing"):
        read_machines("home", file)
    with pytest.raises(ConfigError, match=r"'aws' is unknown; there are \['home'\]"):
        read_machines("aws", file)


def test_the_command_tells_before_anything_is_rented(demo_config: Path, tmp_path: Path) -> None:
    def sp2dpo(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "sp2dpo_ray", *arguments],
            capture_output=True, text=True, cwd=REPOSITORY,
        )  # fmt: skip

    early = sp2dpo("cluster-size", str(demo_config), "--parameters", "4")
    assert early.returncode == 3
    assert "run: sp2dpo prepare" in early.stderr
    assert sp2dpo("prepare", str(demo_config)).returncode == 0
    nameless = sp2dpo("cluster-size", str(demo_config))
    assert nameless.returncode == 2
    assert "say it in billions: --parameters 4" in nameless.stderr
    made = tmp_path / "cluster.yaml"
    told = sp2dpo("cluster-size", str(demo_config), "--json", "--write", str(made), "--cloud",
                  "gcp", "--set", "student.model=Qwen/Qwen3-4B")  # fmt: skip
    assert told.returncode == 0, told.stderr
    summary = json.loads(told.stdout)
    assert summary["student_parameters"] == 4e9
    assert [need["stage"] for need in summary["needs"]] == [
        "annotate", "reference", "train (one arm)", "sweep", "head"
    ]  # fmt: skip
    assert summary["fits"] is True
    assert summary["fees"] == 0  # teachers that are rules
    assert yaml.safe_load(made.read_text())["cluster_name"] == "sp2dpo"
    shown = sp2dpo("cluster-size", str(demo_config), "--parameters", "70",
                   "--set", "student.lora=null")  # fmt: skip
    assert "too little. Share them out" in shown.stderr
