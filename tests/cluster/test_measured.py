"""What `cluster-size` believes of what a run has measured, and what a mix asks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sp2dpo_ray.config import load_config
from sp2dpo_ray.core.arms import parse_arm
from sp2dpo_ray.core.files import TRAINING
from sp2dpo_ray.run import Run
from sp2dpo_ray.stages import STAGES
from sp2dpo_ray.stages.cluster_size import cluster_size
from sp2dpo_ray.stages.mix_rounds import panel_to_ask
from sp2dpo_ray.stages.reference import _reference_provenance, reference_folder


def finished(run: Run, folder: Path, stage: str, inputs: dict[str, Path], settings: Any,
             summary: dict[str, Any], training: dict[str, Any] | None = None) -> None:  # fmt: skip
    provenance = run.provenance(stage, settings, inputs)
    with run.publish(folder, provenance) as draft:
        draft.summary |= summary
        if training:
            (draft.path / TRAINING).write_text(json.dumps(training))


def test_rates_are_those_of_this_configuration_on_gpus(demo_config: Path) -> None:
    def sizes(*changed: str) -> dict[str, str]:
        told = cluster_size(run_of(*changed), cloud="aws", parameters=4.0)
        return {need["stage"]: need["basis"] for need in told["needs"]}

    def run_of(*changed: str) -> Run:
        return Run(load_config(str(demo_config), ("train.gpus_per_worker=1", *changed)))

    run = run_of()
    prepared = STAGES["prepare"](run)
    inputs = {"prepare": run.path("pairs"), "student": run.path("student")}
    finished(run, run.path("student"), "student", {"prepare": run.path("pairs")}, {}, {})
    reference = _reference_provenance(run)
    finished(run, reference_folder(run), "reference", inputs, reference.settings,
             {"tokens": 10_000, "seconds": 2.0})  # fmt: skip
    pairs, one_arm = prepared["pairs"], "train (one arm)"
    options = run.config.training(parse_arm("jmamp"))
    for arm, device, workers, seconds in (
        ("jmamp", "NVIDIA H100", 2, 5.0),
        ("random", "cpu", 2, 1e9),
        ("dpo-0.1", "NVIDIA H100", 8, 1e9),
    ):
        finished(run, run.path("train", arm), "train", inputs, options,
                 {"pairs": pairs, "step_seconds": seconds},
                 {"device": device, "workers": workers})  # fmt: skip
    measured = sizes()
    assert measured["reference"] == "2,500 tokens a second and GPU, measured"
    told = cluster_size(run, cloud="aws", parameters=4.0)
    hours = {need["stage"]: need["hours"] for need in told["needs"]}
    assert told["tokens"] == 10_000
    assert hours[one_arm] == pytest.approx(5.0 / 3600)  # what it took, it takes again
    more = cluster_size(run_of("train.epochs=3"), cloud="aws", parameters=4.0)
    assert more["needs"][2]["hours"] == pytest.approx(3 * 5.0 / 3600)
    for other in ("train.max_length=200", "train.precision=bf16"):
        assert "assumed" in sizes(other)[one_arm]
        assert "assumed" in sizes(other)["reference"]
    assert "assumed" in sizes("train.workers=4")["reference"]
    assert "assumed" in sizes("train.workers=4")[one_arm]
    assert "measured" in sizes("train.workers=[2, 4]")[one_arm]
    assert "assumed" in sizes("train.gpus_per_worker=0")[one_arm]


def test_a_mix_asks_about_its_share(demo_config: Path) -> None:
    run = Run(
        load_config(str(demo_config), ("annotate.mix={share: 0.25}", "annotate.evaluation=false"))
    )
    pairs = STAGES["prepare"](run)["pairs"]
    assert panel_to_ask(run).pairs == round(0.25 * pairs)
