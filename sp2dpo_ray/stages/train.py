"""Stage `train`: one arm on Ray Train, scored on the held-out pairs.

In: `pairs/`, `student/`, the reference, and the schedule. Out: `train/<arm>/`. Invariant: where a
schedule exists every arm trains on exactly its pairs, whether or not it reads a beta from it, so
that arms differ in nothing but their betas.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sp2dpo_ray.console import bar, say
from sp2dpo_ray.core.arms import Arm, parse_arm
from sp2dpo_ray.core.artifact import MANIFEST, Provenance, read_manifest
from sp2dpo_ray.core.files import (
    ADAPTER,
    CHECKPOINTS,
    EVAL,
    EVAL_PAIRS,
    HELD_OUT,
    MERGED,
    METRICS_LINES,
    TRAJECTORY,
)
from sp2dpo_ray.core.halves import prompts_of
from sp2dpo_ray.core.lines import read_json_lines
from sp2dpo_ray.core.methods import METHODS
from sp2dpo_ray.core.schedule.columns import DEFAULT_BETA
from sp2dpo_ray.core.schedule.published import read_columns
from sp2dpo_ray.core.selections import SELECTIONS
from sp2dpo_ray.errors import ConfigError
from sp2dpo_ray.evaluate.held_out import SOURCE, UNKNOWN, held_out_figures
from sp2dpo_ray.run import Run, Summary
from sp2dpo_ray.stages.arm_pairs import Known, write_betas
from sp2dpo_ray.stages.reference import reference_folder
from sp2dpo_ray.stages.student import student_ref
from sp2dpo_ray.train.launch import train_arm
from sp2dpo_ray.train.metrics import write_hparams
from sp2dpo_ray.train.task import UNBOUNDED, TrainTask
from sp2dpo_ray.train.trackers import settings

SCORES = ("accuracy", "margin")  # of the held-out pairs, beside the options in TensorBoard


def train(
    run: Run,
    arm_name: str | None = None,
    *,
    eval_steps: int | None = None,
    on_row: Callable[[dict[str, Any]], None] = lambda row: None,
) -> Summary:
    """Train one arm (`train.arm` unless named) and score it.

    eval_steps: in the place of `train.eval_steps`. on_row: is given each line of the metrics.
    """
    config = run.config
    arm = parse_arm(arm_name or config.train.arm)
    folder = run.path("train", arm.folder)
    provenance = _provenance(run, arm)
    if manifest := run.finished(folder, provenance):
        return manifest.summary | {"reused": True}

    interim = eval_steps or config.train.eval_steps or 0
    if interim and (prompts := _held_out_prompts(run)) < 2:
        raise ConfigError(
            f"train.eval_steps: {interim} scores half of the held-out prompts on the way, and "
            f"there are {prompts}; give some (data.eval_fraction, data.eval_source) or leave it out"
        )
    for flag in _flags(run, arm):
        say(f"train {arm.name}: {flag}")
    start = time.perf_counter()
    _make_room(folder, provenance)
    num_pairs = write_betas(run, arm, folder)
    recipe = Known(run).recipe
    task = TrainTask(
        config.run.name,
        arm.name,
        provenance.key,
        run.path("pairs"),
        reference_folder(run),
        folder,
        student_ref(run),
        config.student.lora,
        config.train_of(arm),
        arm.bounds(recipe) if recipe and arm.needs_schedule else UNBOUNDED,
        eval_steps=interim,
        ordered=bool(arm.selection and SELECTIONS[arm.selection[0]].ordered),
    )
    steps = -(-num_pairs // config.train.pairs_per_step) * config.train.epochs
    with bar(f"train {arm.name}: steps", steps) as advance:
        done = 0
        advance(0, "starting workers")

        def follow(row: dict[str, Any]) -> None:
            nonlocal done
            advance(row["step"] - done, f"loss {row['loss']:.4f}")
            done = row["step"]
            on_row(row)

        train_arm(task, follow=follow)
    summary = {
        "arm": arm.name,
        "title": arm.title,
        "pairs": num_pairs,
        **_training_figures(folder / METRICS_LINES),
        "eval": _held_out_figures(run, folder),
        "adapter": str(folder / ADAPTER) if config.student.lora else None,
        "model": str(folder / MERGED),
        "seconds": time.perf_counter() - start,
    }
    held_out = {f"hparam/{k}": summary["eval"][k] for k in SCORES if k in summary["eval"]}
    write_hparams(folder, settings(task), held_out)
    # checkpoints and lines served their purpose and are no part of the artifact
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    (folder / TRAJECTORY).with_suffix(".jsonl").unlink(missing_ok=True)
    run.seal(folder, provenance, summary)
    return summary | {"reused": False}


def _held_out_prompts(run: Run) -> int:
    """How many different ones the held-out pairs have."""
    file = run.pairs_file(EVAL)
    ids = pq.read_table(file, columns=["prompt_id"])["prompt_id"].to_pylist()
    return len(set(prompts_of(file, ids)))


def folder_of(run: Run, name: str) -> Path:
    """Where an arm's artifact is, or would be."""
    return run.path("train", parse_arm(name).folder)


def finished_arm(run: Run, name: str) -> Summary | None:
    """The summary of an arm that is trained and would not be trained again; else None."""
    arm = parse_arm(name)
    manifest = run.finished(folder_of(run, name), _provenance(run, arm))
    return manifest.summary if manifest else None


def _flags(run: Run, arm: Arm) -> list[str]:
    """What whoever trains this should know of its method and its selection."""
    flags = [METHODS[run.config.train_of(arm).loss].flag]
    if arm.selection:
        flags.append(SELECTIONS[arm.selection[0]].flag)
    return [flag for flag in flags if flag]


def _provenance(run: Run, arm: Arm) -> Provenance:
    config = run.config
    inputs = {
        "prepare": run.path("pairs"),
        "student": run.path("student"),
        "reference": reference_folder(run),
    }
    if arm.needs_schedule or read_manifest(run.path("schedule")):
        inputs["schedule"] = run.path("schedule")
    settings = {"arm": arm.name, **config.training(arm)}
    return run.provenance("train", settings, inputs)


def _make_room(folder: Path, provenance: Provenance) -> None:
    """Clear what another configuration left; keep the checkpoints of this very training."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    ours = folder / CHECKPOINTS / provenance.key[:16]
    going = {folder / METRICS_LINES, (folder / TRAJECTORY).with_suffix(".jsonl")}
    kept = {folder / CHECKPOINTS, ours} | (going if ours.exists() else set())
    for path in {*folder.iterdir(), *(folder / CHECKPOINTS).glob("*")} - kept:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _training_figures(path: Path) -> Summary:
    rows = read_json_lines(path)
    seconds, tokens, computed = (
        sum(row[name] for row in rows) for name in ("seconds", "tokens", "computed_tokens")
    )
    pairs = sum(row["pairs"] for row in rows)
    return {
        "steps": rows[-1]["steps"],
        "tokens": int(tokens),
        "computed_tokens": int(computed),
        "step_seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "loss": sum(row["loss"] * row["pairs"] for row in rows) / pairs,
        "last_loss": rows[-1]["loss"],
    }


def _held_out_figures(run: Run, folder: Path) -> dict[str, Any]:
    """Join what is known of the held-out pairs to the workers' margins, and score them."""
    table = pq.read_table(folder / HELD_OUT)
    ids = table["prompt_id"].to_pylist()
    seen = _seen_by_panel(run)
    categories = [seen[name][0] if name in seen else UNKNOWN for name in ids]
    beta = np.array([seen[name][1] if name in seen else np.nan for name in ids])
    for name, values in (
        ("category", pa.array(categories, pa.string())),
        ("schedule_beta", pa.array(beta, pa.float64(), from_pandas=True)),
    ):
        table = table.append_column(name, values)
    if SOURCE in pq.read_schema(run.pairs_file(EVAL)).names:
        pairs = pq.read_table(run.pairs_file(EVAL), columns=["prompt_id", SOURCE])
        rows = pc.index_in(table["prompt_id"].combine_chunks(), pairs["prompt_id"])
        table = table.append_column(SOURCE, pairs[SOURCE].take(rows).cast(pa.string()))
    pq.write_table(table, folder / EVAL_PAIRS)
    (folder / HELD_OUT).unlink()
    return held_out_figures(table)


def _seen_by_panel(run: Run) -> dict[str, tuple[str, float]]:
    """Category and default beta of each held-out pair that the panel was asked about."""
    if not read_manifest(run.path("schedule")):
        return {}
    table = read_columns(run.path("schedule"), ["category", DEFAULT_BETA], split=EVAL)
    return {row["prompt_id"]: (row["category"], row[DEFAULT_BETA]) for row in table.to_pylist()}
