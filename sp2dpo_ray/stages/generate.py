"""Stage `generate`: every student's answers to the questions of every benchmark.

In: `student/`, `train/<arm>/`, the benchmarks' files. Out: `eval/<arm>/<benchmark>/outputs/`, one
JSON list in alpaca-eval's format with turns, tokens and how each answer ended. Invariant: all
students answer with the same decoding, template and system prompt.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from sp2dpo_ray.console import bar, say
from sp2dpo_ray.core.arms import parse_arm
from sp2dpo_ray.core.artifact import MANIFEST, Draft, Provenance
from sp2dpo_ray.core.files import MERGED, OUTPUTS
from sp2dpo_ray.core.hashing import sha256_hex
from sp2dpo_ray.errors import ConfigError
from sp2dpo_ray.evaluate.generation import GenerateSpec
from sp2dpo_ray.evaluate.generation import generate as answer
from sp2dpo_ray.evaluate.items import Item
from sp2dpo_ray.evaluate.vllm_engine import LENGTH
from sp2dpo_ray.modeling.student import StudentRef, find_student
from sp2dpo_ray.reference.parts import Parts
from sp2dpo_ray.run import Run, Summary
from sp2dpo_ray.stages.benchmarks import BENCHMARKS
from sp2dpo_ray.stages.student import student_ref
from sp2dpo_ray.stages.train import finished_arm

BASE = "base"  # the student before training


def generate(run: Run) -> Summary:
    """Answer what is not answered yet."""
    section = run.config.evaluate
    if not section.benchmarks:
        raise ConfigError("evaluate.benchmarks names none; there are " + ", ".join(BENCHMARKS))
    start, made, reused, tokens = time.perf_counter(), 0, 0, 0
    for model in models_of(run):
        for name in section.benchmarks:
            summary = _generate(run, model, name)
            made += 0 if summary["reused"] else summary["outputs"]
            reused += summary["outputs"] if summary["reused"] else 0
            tokens += summary["tokens"]
    seconds = time.perf_counter() - start
    return {"outputs": made, "outputs_reused": reused, "tokens": tokens, "seconds": seconds}


def models_of(run: Run) -> list[str]:
    """The students to evaluate: the base, and every arm that is trained; others are named."""
    section = run.config.evaluate
    wanted = section.arms if section.arms is not None else run.config.sweep.names
    trained = [name for name in wanted if finished_arm(run, name)]
    if absent := [name for name in wanted if name not in trained]:
        say(f"evaluate: arms {absent} are not trained and are left out; run: sp2dpo sweep")
    return [*([BASE] if section.base else []), *trained]


def outputs_folder(run: Run, model: str, benchmark: str) -> Path:
    """Where a student's answers lie."""
    name = model if model == BASE else parse_arm(model).folder
    return run.path("eval", name, benchmark, "outputs")


def _provenance(run: Run, model: str, items: list[Item]) -> Provenance:
    """What decides a student's answers: its weights, the questions, how they are decoded."""
    config = run.config
    inputs = {"student": run.path("student")}
    if model != BASE:
        inputs = {f"train {model}": run.path("train", parse_arm(model).folder)}
    asked = sha256_hex([[item.id, list(item.turns), item.system] for item in items])
    settings = {
        "questions": asked,
        "decoding": config.generate.model_dump(mode="json", exclude={"rows", "tensor_parallel"}),
        "precision": config.train.precision,
    }
    return run.provenance("generate", settings, inputs)


def _generate(run: Run, model: str, benchmark: str) -> Summary:
    config = run.config
    items = BENCHMARKS[benchmark].items(config.evaluate)
    provenance = _provenance(run, model, items)
    folder = outputs_folder(run, model, benchmark)

    def make(draft: Draft) -> None:
        start = time.perf_counter()
        spec = GenerateSpec(
            _student(run, model), config.generate, config.train.precision,
            config.train.least_workers, config.train.gpus_per_worker,
        )  # fmt: skip
        parts = Parts(folder.parent / f".outputs-{provenance.key[:16]}")
        with bar(f"generate {model} {benchmark}: answers", len(items)) as advance:
            rows = answer(items, spec, parts, progress=advance).to_pylist()
        written = [_row(item, row, model) for item, row in zip(items, rows, strict=True)]
        text = json.dumps(written, ensure_ascii=False, indent=1)
        (draft.path / OUTPUTS).write_text(text + "\n", encoding="utf-8")
        parts.discard()
        lengths = [count for row in rows for count in row["tokens"]]
        draft.summary |= {
            "outputs": len(rows),
            "tokens": sum(lengths),
            "mean_tokens": sum(lengths) / max(len(lengths), 1),
            "cut": sum(end == LENGTH for row in rows for end in row["finish"]),
            "seconds": time.perf_counter() - start,
        }

    return run.publish_once(folder, provenance, make)


def _student(run: Run, model: str) -> StudentRef:
    if model == BASE:
        return student_ref(run)
    return find_student(str(run.path("train", parse_arm(model).folder, MERGED)), None)


def _row(item: Item, row: dict[str, list], model: str) -> dict[str, object]:
    return {
        "id": item.id,
        "instruction": item.turns[0],
        "output": row["answers"][0],
        "generator": model,
        "turns": row["answers"],
        "tokens": row["tokens"],
        "finish": row["finish"],
    }


def is_generated(run: Run, model: str, benchmark: str) -> bool:
    """Whether the answers that lie here are of the student that lies here, to these questions."""
    folder = outputs_folder(run, model, benchmark)
    if not (folder / MANIFEST).is_file():
        return False
    items = BENCHMARKS[benchmark].items(run.config.evaluate)
    return run.finished(folder, _provenance(run, model, items)) is not None
