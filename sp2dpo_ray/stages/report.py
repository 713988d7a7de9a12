"""Stage `report`: the page of a run, from its artifacts alone.

In: everything that the run folder holds. Out: `report/index.html` with `report/pairs/` beside it,
and the comparison of the arms as `report/comparison.json`. Invariant: only arms are shown whose
artifact is finished, checked, and made from the pairs and the schedule that the page shows.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sp2dpo_ray.console import say
from sp2dpo_ray.core.arms import parse_arm
from sp2dpo_ray.core.artifact import open_artifact, read_manifest
from sp2dpo_ray.core.files import (
    ANNOTATIONS,
    ARMS,
    BETAS,
    COMPARISON,
    EVAL,
    EVAL_PAIRS,
    METRICS_LINES,
    QUALITY,
    TRAIN,
)
from sp2dpo_ray.core.halves import prompts_of
from sp2dpo_ray.core.hashing import canonical_json
from sp2dpo_ray.core.languages import COLUMN
from sp2dpo_ray.core.pairs import SCORES, pairs_from
from sp2dpo_ray.core.schedule.audit import audit_list, doubted
from sp2dpo_ray.core.schedule.published import read_columns
from sp2dpo_ray.errors import ArtifactError
from sp2dpo_ray.evaluate.compare import ArmScore, compare_arms
from sp2dpo_ray.evaluate.select import ArmMargins, select
from sp2dpo_ray.report.arms_table import BASE
from sp2dpo_ray.report.by_language import by_language
from sp2dpo_ray.report.costs import CostRow, annotator_costs, judge_costs
from sp2dpo_ray.report.measures import Floats
from sp2dpo_ray.report.overview import FEWEST_PAIRS, TOO_FEW
from sp2dpo_ray.report.page import PageData, write_page
from sp2dpo_ray.report.paper_tables import Student, table_16
from sp2dpo_ray.run import Run, Summary

ARMS_TABLE = "arms.md"
LC, WR = "LC", "WR"  # AlpacaEval 2: length-controlled and plain win rate, in percent
ACCURACY, MARGIN = "held-out accuracy, %", "held-out margin, nats"
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
SHOWN_STAGES = ("pairs", "student", "annotations", "schedule")


def report(run: Run) -> Summary:
    """Gather, compare, render, publish."""
    config = run.config
    _check_current(run)
    trained = _trained_arms(run)
    inputs = {"prepare": run.path("pairs"), "schedule": run.path("schedule")}
    inputs |= {f"train {name}": run.path("train", parse_arm(name).folder) for name in trained}
    judged = _judged(run, list(trained))
    chosen = config.audit
    settings = {"arms": list(trained), "judged": judged, "audit": chosen.model_dump(mode="json")}
    provenance = run.provenance("report", settings, inputs)
    rows = _compare(run, trained)
    stages = {
        name: manifest.summary
        for name in SHOWN_STAGES
        if (manifest := read_manifest(run.path(name))) is not None
    }
    stages |= {f"train {name}": summary for name, summary in trained.items()}
    schedule = read_columns(run.path("schedule"))
    pairs = pq.read_table(run.pairs_file(TRAIN))
    spoken = dict(zip(*pairs.select(["prompt_id", COLUMN]).to_pydict().values(), strict=True))
    listed = audit_list(
        schedule, config.panel, each=chosen.each, sample=chosen.sample, seed=chosen.seed
    )
    data = PageData(
        lambda_record=json.loads(run.path("lambda.json").read_text(encoding="utf-8")),
        stages=stages,
        panel=config.panel,
        schedule=schedule,
        digest=open_artifact(run.path("schedule")).digest,
        figures=json.loads(run.path("schedule", QUALITY).read_text(encoding="utf-8")),
        pairs={pair.prompt_id: pair for pair in pairs_from(pairs)},
        score_gap=_score_gap(pairs, schedule),
        listed=dict(zip(*listed.select(["prompt_id", "why"]).to_pydict().values(), strict=True)),
        flipped=doubted(schedule, config.panel),
        arms=rows,
        curves={name: _metrics(run, name) for name in trained},
        judged=judged,
        betas={name: _betas(run, name) for name in trained},
        by_category={name: s["eval"].get("by_category", {}) for name, s in trained.items()},
        without_model=config.without_model,
        languages=by_language(schedule, config.panel, spoken),
        prompt_languages=spoken,
        predictors=[t.name for t in config.teachers if t.is_predictor],
        costs=_costs(run),
    )

    student, columns = _student(run, rows, judged)
    with run.publish(run.path("report"), provenance) as draft:
        write_page(data, draft.path)
        (draft.path / "comparison.json").write_text(json.dumps(rows, indent=2), encoding="utf-8")
        (draft.path / ARMS_TABLE).write_text(table_16([student], columns), encoding="utf-8")
        record = asdict(student) | {"columns": columns}
        (draft.path / ARMS).write_text(json.dumps(record, indent=1), encoding="utf-8")
    page, table = (str(run.path("report", name)) for name in ("index.html", ARMS_TABLE))
    text = run.path("report", ARMS_TABLE).read_text(encoding="utf-8") if rows else ""
    return {"page": page, "table": table, "arms": rows, "text": text}


def _check_current(run: Run) -> None:
    """Refuse a schedule that is not made from the pairs and the configuration of now: the page
    would show other pairs, other teachers or another map than it names."""
    folders = {name: run.path(name) for name in ("pairs", "annotations", "schedule")}
    there = {n: open_artifact(folder) for n, folder in folders.items() if read_manifest(folder)}
    held, answers, pairs = (there.get(name) for name in ("schedule", "annotations", "pairs"))
    if held is None:
        return  # named as missing where the stage's inputs are read
    why = ""
    if answers and pairs and answers.inputs.get("prepare") != pairs.digest:
        why = "annotations/ was made from other pairs than pairs/ holds"
    elif answers and held.inputs.get("annotate") != answers.digest:
        why = "schedule/ was made from other annotations than annotations/ holds"
    elif (held.settings or {}).get("recipe") != json.loads(canonical_json(run.config.recipe.json)):
        why = "schedule/ was made with other teachers, prompts, map or ensemble than configured"
    if why:
        raise ArtifactError(
            f"{why}, so the page would be wrong; run: sp2dpo annotate, then sp2dpo schedule (what "
            "is on record is not asked again)"
        )


def _score_gap(pairs: pa.Table, schedule: pa.Table) -> Floats | None:
    """What the data's own scores say of each pair of the schedule, where it has them."""
    if not set(SCORES) <= set(pairs.column_names):
        return None
    better, worse = (pairs[name].cast(pa.float64()).to_numpy() for name in SCORES)
    gaps = dict(zip(pairs["prompt_id"].to_pylist(), better - worse, strict=True))
    found = np.array([gaps[name] for name in schedule["prompt_id"].to_pylist()])
    return None if np.isnan(found).any() else found


def _costs(run: Run) -> list[CostRow]:
    judges, path = judge_costs(_comparison(run)), run.path("annotations", ANNOTATIONS)
    if not path.exists():  # a schedule that came without them
        return judges
    calls = pq.read_table(path, columns=["teacher", "key", "prompt_tokens", "completion_tokens"])
    prices = {teacher.name: teacher.rate for teacher in run.config.teachers}
    return annotator_costs(calls, prices) + judges


def _comparison(run: Run) -> list[dict[str, Any]]:
    """What `evaluate` found, if it was run."""
    path = run.path("eval", COMPARISON)
    rows: list[dict[str, Any]] = json.loads(path.read_text("utf-8")) if path.exists() else []
    return rows


def _judged(run: Run, arms: list[str]) -> list[dict[str, Any]]:
    """What `evaluate` found of these arms and the base on AlpacaEval 2."""
    shown = {BASE, *arms}
    rows = [row for row in _comparison(run) if row["benchmark"] == "alpaca_eval"]
    kept = [row for row in rows if row["model"] in shown and _of_this_training(run, row["model"])]
    # gains on a baseline that is not here would hang in the air
    return kept if any(row["model"] == row["baseline"] for row in kept) else []


def _of_this_training(run: Run, model: str) -> bool:
    """Whether the judged answers are of the arm as it is now, not of an earlier training."""
    if model == BASE:
        return True
    folder = parse_arm(model).folder
    outputs = read_manifest(run.path("eval", folder, "alpaca_eval", "outputs"))
    trained = read_manifest(run.path("train", folder))
    if outputs is None or trained is None:  # answers from elsewhere
        return trained is not None
    return outputs.inputs.get(f"train {model}") in (None, trained.digest)


def _student(
    run: Run, rows: list[dict[str, Any]], judged: list[dict[str, Any]]
) -> tuple[Student, list[str]]:
    """The arms' figures, the mean over seeds where there are several, and their columns."""
    cells: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        of_arm = cells.setdefault(parse_arm(row["arm"]).base, {ACCURACY: [], MARGIN: []})
        of_arm[ACCURACY].append(100 * row["accuracy"]["mean"])
        of_arm[MARGIN].append(row["margin"]["mean"])
    for row in judged:
        name = row["model"] if row["model"] == BASE else parse_arm(row["model"]).base
        of_arm = cells.setdefault(name, {})
        for column, figure in ((LC, "length_controlled_winrate"), (WR, "win_rate")):
            if row["figures"][figure] is not None:
                of_arm.setdefault(column, []).append(row["figures"][figure])
    means = {arm: {k: float(np.mean(v)) for k, v in of.items()} for arm, of in cells.items()}
    columns = [*((LC, WR) if judged else ()), ACCURACY, MARGIN]
    return Student(run.config.run.name, run.config.panel, means), columns


def _betas(run: Run, name: str) -> list[float]:
    """Quantiles of the betas that an arm was trained with."""
    table = pq.read_table(run.path("train", parse_arm(name).folder, BETAS), columns=["beta"])
    quantiles = np.quantile(table["beta"].to_numpy(), QUANTILES)
    return [float(value) for value in quantiles]


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
    for name in dict.fromkeys((*run.config.sweep.names, *_searched(run), run.config.train.arm)):
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


def _searched(run: Run) -> list[str]:
    """The best arm of the sweep's search, if there was one."""
    manifest = read_manifest(run.path("sweep")) if run.config.sweep.search else None
    name = manifest.summary.get("searched") if manifest else None
    return [name] if name else []


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
    tuned = [name for name in margins if parse_arm(name).is_global]
    prompts = prompts_of(run.pairs_file(EVAL), next(iter(margins.values()))[0])
    enough = len(prompts) >= FEWEST_PAIRS and len(set(prompts)) > 1
    if len(tuned) > 1 and enough:  # chosen on one half, or the baseline would be any of them
        arms = {name: ArmMargins(ids, values[None]) for name, (ids, values) in margins.items()}
        return [_row(score, trained[score.arm]) for score in select(arms, tuned, prompts).rows]
    baseline = tuned[0] if tuned else next(iter(margins))
    return [_row(score, trained[score.arm]) for score in compare_arms(margins, baseline, prompts)]


def _row(score: ArmScore, summary: Summary) -> dict[str, Any]:
    figures = {name: summary[name] for name in ("title", "seconds", "tokens_per_second", "loss")}
    few = score.gain is not None and score.pairs < FEWEST_PAIRS
    return asdict(score) | figures | ({"verdict": TOO_FEW} if few else {})


def _metrics(run: Run, name: str) -> list[dict[str, float]]:
    path = run.path("train", parse_arm(name).folder, METRICS_LINES)
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
