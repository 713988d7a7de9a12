"""Stage `sweep`: every arm with every seed, several at once, and the table that they make.

In: `pairs/`, `student/`, the reference, the schedule. Out: `train/<arm>/` of each, and `sweep/`:
trials and table. Invariant: arms that are finished are not trained again; the half of the held-out
pairs that chooses the baseline is not the half that the table reports.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from sp2dpo_ray.console import bar, say
from sp2dpo_ray.core.arms import parse_arm
from sp2dpo_ray.core.artifact import Draft
from sp2dpo_ray.core.files import EVAL, EVAL_PAIRS, SWEEP_TABLE, SWEEP_TEXT, SWEEP_TRIALS
from sp2dpo_ray.core.halves import prompts_of
from sp2dpo_ray.errors import TrainingError
from sp2dpo_ray.evaluate.select import ArmMargins, Selection, select, sentence
from sp2dpo_ray.run import Run, Summary
from sp2dpo_ray.stages.search import arm_of, search
from sp2dpo_ray.stages.train import finished_arm, train
from sp2dpo_ray.tune.trials import FINISHED, Outcome, room_for, run_trials

RECORDS = "sweep-records"  # Ray Tune's own, while it runs


def sweep(run: Run) -> Summary:
    """Train the arms of `sweep.arms` side by side, and compare them."""
    start = time.perf_counter()
    names = list(run.config.sweep.names)
    todo = [name for name in names if finished_arm(run, name) is None]
    reused = [Outcome(name, FINISHED) for name in names if name not in todo]
    made = _train_all(run, todo) if todo else []
    outcomes = sorted([*reused, *made], key=lambda outcome: names.index(outcome.arm))
    searched, trials = search(run) if run.config.sweep.search else (None, [])
    if searched and searched not in names:  # the best of the search stands beside the arms
        outcomes.append(Outcome(searched, FINISHED))
        names.append(searched)
    good = [outcome.arm for outcome in outcomes if outcome.state == FINISHED]
    for outcome in outcomes:
        if outcome.state != FINISHED:
            say(f"sweep: arm {outcome.arm} {outcome.state}: {outcome.reason}")
    if not good:
        raise TrainingError("no arm of the sweep finished: " + outcomes[0].reason)
    margins = _margins(run, good)
    ids = next(iter(margins.values())).ids
    selection = select(
        margins,
        [name for name in margins if parse_arm(name).is_global],
        prompts_of(run.pairs_file(EVAL), ids),
    )
    rows = _rows(run, selection, good)
    inputs = {f"train {name}": run.path("train", parse_arm(name).folder) for name in good}
    record = {
        "arms": [asdict(outcome) for outcome in outcomes],
        "search": [asdict(trial) | {"arm": arm_of(trial.values)} for trial in trials],
    }
    # further trials are told of, even where the same map stays the best
    provenance = run.provenance("sweep", {"arms": names, "search": record["search"]}, inputs)

    def make(draft: Draft) -> None:
        for name, content in ((SWEEP_TRIALS, record), (SWEEP_TABLE, rows)):
            (draft.path / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        (draft.path / SWEEP_TEXT).write_text(_markdown(rows, selection), encoding="utf-8")
        draft.summary |= {
            "arms": len(names),
            "trained": len(made),
            "failed": len(outcomes) - len(good),
            "best": selection.chosen,
            "baseline": selection.baseline,
            "searched": searched,
            "trials": len(trials),
            "table": rows,
        }

    summary = run.publish_once(run.path("sweep"), provenance, make)
    return summary | {"trained": len(made), "seconds": time.perf_counter() - start}


def _train_all(run: Run, todo: list[str]) -> list[Outcome]:
    at_once = room_for(run.config.train, run.config.sweep.at_once)
    folder = run.path(RECORDS)
    shutil.rmtree(folder, ignore_errors=True)
    say(f"sweep: {len(todo)} arms to train, {at_once} at once")
    with bar("sweep: arms", len(todo)) as advance:
        done: set[str] = set()

        def watch() -> None:
            new = {name for name in todo if name not in done and _sealed(run, name)}
            done.update(new)
            if new:
                advance(len(new), ", ".join(sorted(new)))

        outcomes = run_trials(
            todo, lambda arm: train(run, arm), at_once=at_once, folder=folder, watch=watch
        )
    shutil.rmtree(folder, ignore_errors=True)
    return outcomes


def _sealed(run: Run, name: str) -> bool:
    return run.path("train", parse_arm(name).folder, "manifest.json").exists()


def _margins(run: Run, names: list[str]) -> dict[str, ArmMargins]:
    """The margins of each arm, its seeds together."""
    found: dict[str, ArmMargins] = {}
    for name in names:
        arm = parse_arm(name)
        table = pq.read_table(run.path("train", arm.folder, EVAL_PAIRS)).sort_by("prompt_id")
        ids, margin = table["prompt_id"].to_pylist(), table["margin"].to_numpy()[None]
        if arm.base in found:
            margin = np.concatenate([found[arm.base].margin_SN, margin])
        found[arm.base] = ArmMargins(ids, margin)
    return found


def _rows(run: Run, selection: Selection, good: list[str]) -> list[dict[str, Any]]:
    """The table: each arm on the reporting half, what it cost, and the verdict in words."""
    rows = []
    for row in selection.rows:
        runs = [s for name in good if parse_arm(name).base == row.arm
                if (s := finished_arm(run, name))]  # fmt: skip
        rows.append(
            asdict(row)
            | {
                "title": runs[0]["title"],
                "tuning_accuracy": selection.tuning[row.arm],
                "seconds": sum(s["seconds"] for s in runs),
                "tokens": sum(s["tokens"] for s in runs),
                "sentence": sentence(row, selection.baseline),
            }
        )
    return rows


def _markdown(rows: list[dict[str, Any]], selection: Selection) -> str:
    lines = [
        f"Held-out preference accuracy on {rows[0]['pairs']} pairs; the baseline was chosen on "
        f"{selection.tuning_pairs} others.",
        "",
        "| arm | seeds | accuracy % | gain on the baseline, points | margin, nats | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        gain = row["gain"]
        told = "" if gain is None else _interval(gain, 100, "+.1f")
        lines.append(
            f"| {row['arm']} | {row['seeds']} | {_interval(row['accuracy'], 100, '.1f')} | {told} "
            f"| {_interval(row['margin'], 1, '.2f')} | {row['verdict']} |"
        )
    return "\n".join(lines) + "\n"


def _interval(value: dict[str, float], scale: float, form: str) -> str:
    mean, low, high = (format(scale * value[name], form) for name in ("mean", "low", "high"))
    return f"{mean} ({low} to {high})"
