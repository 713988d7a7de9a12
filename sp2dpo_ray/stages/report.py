"""Stage `report`: the page of a run, from its artifacts alone.

In: everything that the run folder holds. Out: `report/index.html`, and the comparison of the arms
as `report/comparison.json`. Invariant: only arms are shown whose artifact is finished, checked, and
made from the pairs and the schedule that the page shows.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from sp2dpo_ray.console import say
from sp2dpo_ray.core.arms import parse_arm
from sp2dpo_ray.core.artifact import open_artifact, publish, read_manifest
from sp2dpo_ray.core.files import EVAL_PAIRS, METRICS_LINES, QUALITY, TRAIN
from sp2dpo_ray.core.pairs import pairs_from
from sp2dpo_ray.core.schedule.published import read_columns
from sp2dpo_ray.evaluate.compare import ArmScore, compare_arms
from sp2dpo_ray.report.page import PageData, render
from sp2dpo_ray.run import Run, Summary

SHOWN_STAGES = ("pairs", "student", "annotations", "schedule")


def report(run: Run) -> Summary:
    """Gather, compare, render, publish."""
    config = run.config
    trained = _trained_arms(run)
    inputs = {"prepare": run.path("pairs"), "schedule": run.path("schedule")}
    inputs |= {f"train {name}": run.path("train", parse_arm(name).folder) for name in trained}
    provenance = run.provenance("report", {"arms": list(trained)}, inputs)
    rows = _compare(run, trained)
    stages = {
        name: manifest.summary
        for name in SHOWN_STAGES
        if (manifest := read_manifest(run.path(name))) is not None
    }
    stages |= {f"train {name}": summary for name, summary in trained.items()}
    data = PageData(
        lambda_record=json.loads(run.path("lambda.json").read_text(encoding="utf-8")),
        stages=stages,
        panel=config.panel,
        schedule=read_columns(run.path("schedule")),
        figures=json.loads(run.path("schedule", QUALITY).read_text(encoding="utf-8")),
        pairs={pair.prompt_id: pair for pair in pairs_from(pq.read_table(run.pairs_file(TRAIN)))},
        arms=rows,
        curves={name: _metrics(run, name) for name in trained},
        by_category={name: s["eval"].get("by_category", {}) for name, s in trained.items()},
        without_model=[t.name for t in config.teachers if not t.is_model],
    )

    with publish(run.path("report"), provenance) as draft:
        (draft.path / "index.html").write_text(render(data), encoding="utf-8")
        (draft.path / "comparison.json").write_text(json.dumps(rows, indent=2), encoding="utf-8")
    return {"page": str(run.path("report", "index.html")), "arms": rows}


def _trained_arms(run: Run) -> dict[str, Summary]:
    """Finished arms in the order of `sweep.arms`, then `train.arm` if it is another one.

    An arm that was trained on other pairs, another schedule or with other options than those here
    now is left out and named: beside the others it would be an unfair comparison.
    """
    current = {
        name: open_artifact(run.path(folder)).digest
        for name, folder in (("prepare", "pairs"), ("schedule", "schedule"))
        if read_manifest(run.path(folder))
    }
    found = {}
    for name in dict.fromkeys((*run.config.sweep.names, run.config.train.arm)):
        arm = parse_arm(name)
        options = run.config.training(arm)
        folder = run.path("train", arm.folder)
        if not read_manifest(folder):
            continue
        manifest = open_artifact(folder)
        if any(manifest.inputs.get(source) != digest for source, digest in current.items()):
            why = "on other pairs or another schedule"
        elif keys := _other_options(manifest.settings, options):
            why = f"with another {', '.join(keys)}"
        else:
            found[name] = manifest.summary
            continue
        say(f"arm {name} is left out: it was trained {why}; "
            f"run: sp2dpo train --set train.arm={name}")  # fmt: skip
    return found


def _other_options(settings: Any, options: dict[str, Any]) -> list[str]:
    """The dotted keys of training options that differ from the configuration's."""
    found = []
    for section, values in options.items():
        trained = settings[section] if settings else values
        if values is None or trained is None:  # no LoRA
            found += [section] if values != trained else []
        else:
            found += [f"{section}.{key}" for key in values if trained.get(key) != values[key]]
    return found


def _compare(run: Run, trained: dict[str, Summary]) -> list[dict[str, Any]]:
    margins: dict[str, tuple[list[str], np.ndarray]] = {}
    for name in trained:
        table = pq.read_table(run.path("train", parse_arm(name).folder, EVAL_PAIRS))
        margins[name] = (table["prompt_id"].to_pylist(), table["margin"].to_numpy())
    if not margins or not next(iter(margins.values()))[0]:
        return []
    baseline = next((name for name in margins if parse_arm(name).is_global), next(iter(margins)))
    return [_row(score, trained[score.arm]) for score in compare_arms(margins, baseline)]


def _row(score: ArmScore, summary: Summary) -> dict[str, Any]:
    figures = {name: summary[name] for name in ("title", "seconds", "tokens_per_second", "loss")}
    return asdict(score) | figures


def _metrics(run: Run, name: str) -> list[dict[str, float]]:
    path = run.path("train", parse_arm(name).folder, METRICS_LINES)
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
