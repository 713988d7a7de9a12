"""Command `cluster-size`: what cluster a run wants, before one is rented.

In: `pairs/`, the journal, what this run has measured so far. Out: nodes, hours and money by stage;
nothing is written but the cluster file that was asked for.
"""

from __future__ import annotations

import json
import re
import struct
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from sp2dpo_ray.annotate.estimate import SECONDS, CostEstimate, estimate_costs, total
from sp2dpo_ray.annotate.journal import Journal
from sp2dpo_ray.annotate.record import read_record
from sp2dpo_ray.cluster.sizes import (
    ONE_ARM,
    ROOM,
    Hosted,
    Work,
    gib_of_weights,
    gpu_machine,
    needs,
    read_machines,
    sized,
)
from sp2dpo_ray.config import TeacherSection
from sp2dpo_ray.core.costs import BYTES_PER_TOKEN
from sp2dpo_ray.core.files import EVAL, TRAIN
from sp2dpo_ray.errors import ConfigError
from sp2dpo_ray.run import Run, Summary
from sp2dpo_ray.stages.measured import rates_of, reference_of
from sp2dpo_ray.stages.mix_rounds import panel_to_ask

# 30B, 0.6b, 8x7B: of a mixture all experts, since all of them lie in memory
IN_NAME = re.compile(r"(?<![\d.])(?:(\d+)x)?(\d+(?:\.\d+)?)\s*[bB](?![a-zA-Z])")


def cluster_size(
    run: Run,
    *,
    cloud: str,
    gpu: str | None = None,
    parameters: float | None = None,
    within_hours: float | None = None,
    prices: Path | None = None,
    template: Path | None = None,
    write: Path | None = None,
) -> Summary:
    """Needs by stage on a cloud's machines.

    gpu: the group to train on; parameters: of the student, in billions, where neither its
    files nor its name tell; within_hours: of the sweep; write: where to put `template` with its
    groups sized.
    """
    run.fetch_if_free()
    machines, source = read_machines(cloud, prices)
    work = _work(run, parameters)
    chosen = gpu_machine(work, machines, gpu)
    found = needs(work, machines, chosen, within_hours=within_hours)
    weights = gib_of_weights(work)
    if write is not None:
        if template is None or not template.is_file():
            raise ConfigError(f"--template: {template} is no file; cluster/clouds has one a cloud")
        write.write_text(sized(template.read_text(encoding="utf-8"), found), encoding="utf-8")
    whole = [need for need in found if need.stage != ONE_ARM]
    return {
        "cloud": cloud,
        "prices": source,
        "student_parameters": work.parameters,
        "tokens": work.tokens,
        "gpu": asdict(chosen),
        "gib_of_weights": weights,
        "fits": weights <= ROOM * chosen.gib,
        "needs": [asdict(need) for need in found],
        "usd": sum(need.usd for need in whole),
        "usd_spot": _sum(need.spot for need in whole),
        "fees": _sum(need.fees for need in whole),
        "written": None if write is None else str(write),
    }


def _work(run: Run, parameters: float | None) -> Work:
    config, train = run.config, run.config.train
    run.provenance("cluster-size", None, {"prepare": run.path("pairs")})  # the pairs are whole
    panel = panel_to_ask(run)
    record = read_record(Journal(panel.spec.place).new_entries())
    outlooks = estimate_costs(list(panel.files.values()), panel.spec, record)
    outlook = total(outlooks)
    called = [t for t in config.teachers if t.external and t.mode == "interactive"]
    by_split = {split: _tokens(run, split) for split in (TRAIN, EVAL)}
    tokens = sum(by_split.values())
    if made := reference_of(run):
        counted = int(made.summary["tokens"])
        by_split = {k: round(v * counted / max(tokens, 1)) for k, v in by_split.items()}
        tokens = counted
    judged = _judging(run)
    return Work(
        tokens=tokens,
        train_tokens=by_split[TRAIN],
        parameters=1e9 * parameters if parameters else _parameters(run),
        gpus=round(train.most_workers * train.gpus_per_worker),
        arms=len(config.sweep.names) + (config.sweep.search.trials if config.sweep.search else 0),
        epochs=train.epochs,
        all_weights=config.student.lora is None,
        recomputes=train.gradient_checkpointing != "off",
        precision=train.precision,
        shards=train.strategy in ("zero3", "fsdp"),
        calls_per_second=sum(_rate(teacher) for teacher in called),
        calls=sum(outlooks[t.name].calls - outlooks[t.name].calls_recorded for t in called),
        actors=panel.spec.actors,
        hosted=tuple(_hosted(t, outlooks[t.name]) for t in config.teachers if t.on_engine),
        annotate_hours=float(outlook["hours"] or 0.0),
        annotate_usd=outlook["cost_usd"],
        answer_tokens=judged["answer_tokens"],
        judge_hours=judged["hours"],
        judge_usd=judged["usd"],
        rates=rates_of(run, by_split[TRAIN]),
    )


def _hosted(teacher: TeacherSection, outlook: CostEstimate) -> Hosted:
    return Hosted(
        teacher.name,
        teacher.engine.gpus,
        _named(teacher.model),
        outlook.prompt_tokens,
        outlook.completion_tokens,
    )


def _rate(teacher: TeacherSection) -> float:
    """Calls a second that a teacher's limits allow."""
    each = teacher.limits.in_flight / SECONDS
    return min(each, teacher.limits.rpm / 60) if teacher.limits.rpm else each


def _tokens(run: Run, split: str) -> int:
    """A guess from the length of texts, each prompt once, cut as training cuts."""
    file = run.pairs_file(split)
    if not file.is_file():
        return 0
    most = int(run.config.train.max_length * BYTES_PER_TOKEN)
    table = pq.read_table(file, columns=["chosen", "rejected"])
    count = sum(
        pc.sum(pc.min_element_wise(pc.binary_length(table[name]), most)).as_py() or 0
        for name in ("chosen", "rejected")
    )
    prompts = pq.read_table(file, columns=["prompt"])["prompt"].combine_chunks()
    room = int(run.config.train.max_prompt_length * BYTES_PER_TOKEN)
    for prompt in prompts.to_pylist():
        count += min(room, sum(len(turn["content"].encode()) for turn in prompt))
    return round(count / BYTES_PER_TOKEN)


def _parameters(run: Run) -> float:
    """Of the student: counted in its files, else as its name says."""
    model = run.config.student.model
    folder = run.path("student", "model") if model == "tiny" else Path(model).expanduser()
    if files := sorted(folder.glob("*.safetensors")):
        return float(sum(_count(file) for file in files))
    if told := _named(model):
        return told
    raise ConfigError(
        f"student.model: {model!r} does not tell how many parameters it has, and its files are not "
        "here; say it in billions: --parameters 4"
    )


def _named(model: str) -> float | None:
    """Parameters as a model's name tells them: of "30B-A3B" 3 billion are active, 30 are there."""
    found = IN_NAME.findall(Path(model).name)
    return 1e9 * max(float(count or 1) * float(size) for count, size in found) if found else None


def _count(file: Path) -> int:
    """Numbers in a safetensors file, of its header alone."""
    with file.open("rb") as stream:
        (size,) = struct.unpack("<Q", stream.read(8))
        header: dict[str, Any] = json.loads(stream.read(size))
    return sum(prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def _judging(run: Run) -> dict[str, Any]:
    if not run.config.evaluate.benchmarks:
        return {"answer_tokens": 0, "hours": 0.0, "usd": 0.0}
    from sp2dpo_ray.stages.benchmarks import BENCHMARKS
    from sp2dpo_ray.stages.judging_costs import judging_costs

    section = run.config.evaluate
    arms = section.arms if section.arms is not None else run.config.sweep.names
    answers = sum(
        len(item.turns) for name in section.benchmarks for item in BENCHMARKS[name].items(section)
    )
    costs = judging_costs(run).values()
    calls = sum(row["calls"] for row in costs)
    rate = _rate(section.judge) if section.judge and section.judge.external else 0.0
    return {
        "hours": calls / rate / 3600 if rate else 0.0,
        "answer_tokens": (len(arms) + section.base) * answers * run.config.generate.max_new_tokens,
        "usd": _sum(row["cost_usd"] for row in costs),
    }


def _sum(values: Any) -> float | None:
    """None where one of them is not known."""
    known = list(values)
    return None if None in known else sum(known)
