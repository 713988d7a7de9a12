"""How large a cluster a run wants: nodes of which kind, for how long, for how much money.

In: what the run has to compute (`Work`), the machines of a cloud. Out: one `Need` a stage.
Invariant: each figure says where it is from: measured by this run, or the assumption named here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from sp2dpo_ray.errors import ConfigError

# Of a core that makes calls: a third of what docs/benchmarks.md measured, which had the server and
# the driver on the same cores.
CALLS_A_CORE = 200.0
CALL_SHARE = 0.5  # of a node's cores; the others parse answers and write the journal
# Shares of a GPU's dense bf16 rate that are assumed until a run was measured: training and scoring
# are matrix products; generation reads every weight for each token.
BUSY, BUSY_GENERATING = 0.35, 0.03
# Floating-point operations a token and weight: forward 2; backward 2 for activations and, where all
# weights are trained, 2 more for weights; 2 again where activations are recomputed.
FORWARD, BACKWARD, WEIGHT_GRADIENTS = 2, 2, 2
# Bytes a weight while training: as loaded; with float32 copy, gradient and Adam's two moments.
LOADED = {"bf16": 2.0, "fp32": 4.0, "nf4": 0.55}
TRAINED = 16.0
ROOM = 0.75  # of a GPU that weights may take; activations want the rest
GIB = 1 << 30
BUNDLED = "the bundled machines.yaml"
ONE_ARM = "train (one arm)"  # a part of the sweep, told beside it


@dataclass(frozen=True, slots=True)
class Machine:
    """A kind of node. usd, spot: an hour; tflops: dense bf16 of one GPU; gib: its memory."""

    group: str
    type: str
    cpus: int
    usd: float
    spot: float | None = None
    gpus: int = 0
    gib: int = 0
    tflops: float = 0.0


@dataclass(frozen=True, slots=True)
class Hosted:
    """A teacher on the cluster's own GPUs: its parameters, None where nobody tells, and the tokens
    that it has still to read and to write."""

    name: str
    gpus: int
    parameters: float | None
    prompt_tokens: int
    answer_tokens: int


@dataclass(frozen=True, slots=True)
class Work:
    """What a run asks of a cluster.

    tokens: of all pairs, each prompt once. train_tokens: of those, what one epoch trains on.
    parameters: of the student. gpus: that one arm trains on. rates: tokens a second and GPU that
    this run measured, by stage. answer_tokens: that all students may write; judge_hours, judge_usd:
    of judging them. calls_per_second: what the teachers' limits allow together; calls: that are
    left; actors: that make them.
    """

    tokens: int
    train_tokens: int
    parameters: float
    gpus: int
    arms: int
    epochs: int
    all_weights: bool
    recomputes: bool
    precision: str
    shards: bool
    calls_per_second: float
    calls: int
    actors: int
    annotate_hours: float
    annotate_usd: float | None
    answer_tokens: int
    judge_hours: float
    judge_usd: float | None
    rates: dict[str, float]
    hosted: tuple[Hosted, ...] = ()


@dataclass(frozen=True, slots=True)
class Need:
    """Nodes of a group for some hours. usd: of the nodes on demand; spot: at spot prices, None
    where there is none; fees: what is paid to others, None where a price is missing."""

    stage: str
    group: str
    nodes: int
    hours: float
    usd: float
    spot: float | None
    fees: float | None
    basis: str


def read_machines(cloud: str, file: Path | None) -> tuple[dict[str, Machine], str]:
    """The machines of a cloud, by group, and where and when their prices are from."""
    text = (
        file.read_text(encoding="utf-8")
        if file
        else resources.files("sp2dpo_ray.cluster").joinpath("machines.yaml").read_text()
    )
    content: dict[str, Any] = yaml.safe_load(text)
    if not isinstance(content.get(cloud), dict):
        known = sorted(name for name, rows in content.items() if name not in ("source", "as_of"))
        raise ConfigError(f"--cloud: {cloud!r} is unknown; there are {known}")
    try:
        machines = {group: Machine(group, **row) for group, row in content[cloud].items()}
    except TypeError as error:
        raise ConfigError(f"{file or BUNDLED}: {cloud}: {error}") from None
    if missing := {"head", "annotate"} - set(machines):
        raise ConfigError(f"{file or BUNDLED}: {cloud}: the groups {sorted(missing)} are missing")
    return machines, f"{content.get('source')}; prices of {content.get('as_of', {}).get(cloud)}"


def gpu_machine(work: Work, machines: dict[str, Machine], wanted: str | None) -> Machine:
    """The group to train on: the one that is named, else the smallest that holds an arm."""
    gpus = sorted((m for m in machines.values() if m.gpus), key=lambda m: (m.gpus, m.usd))
    if wanted is not None:
        found = [machine for machine in gpus if machine.group == wanted]
        if not found:
            raise ConfigError(f"--gpu: {wanted!r} is unknown; there are {[m.group for m in gpus]}")
        return found[0]
    if not gpus:
        raise ConfigError("this cloud's machines have no GPU")
    return next((machine for machine in gpus if machine.gpus >= work.gpus), gpus[-1])


def gib_of_weights(work: Work) -> float:
    """Memory that weights and optimiser take of each GPU of an arm, in GiB. Whoever shares weights
    out has loaded them whole before, as the reference pass does."""
    each = TRAINED if work.all_weights else LOADED[work.precision]
    shared = each / (max(work.gpus, 1) if work.shards else 1)
    return work.parameters * max(shared, LOADED[work.precision]) / GIB


def needs(
    work: Work, machines: dict[str, Machine], gpu: Machine, *, within_hours: float | None
) -> list[Need]:
    """One need a stage; within_hours: the sweep's arms go side by side until it fits."""
    annotate = machines["annotate"]
    wanted = max(1, math.ceil(work.calls_per_second / CALLS_A_CORE))
    nodes = max(1, math.ceil(min(wanted, work.actors) / (annotate.cpus * CALL_SHARE)))
    hours = max(work.annotate_hours, work.calls / (CALLS_A_CORE * work.actors) / 3600)
    basis = f"limits of the teachers; {CALLS_A_CORE:.0f} calls a second and actor"
    if work.actors < wanted:
        basis = f"{work.actors} actors, fewer than the limits allow: set annotate.actors: {wanted}"
    found = [_need("annotate", annotate, nodes, hours, basis, fees=work.annotate_usd)]
    found += [_teacher(teacher, gpu) for teacher in work.hosted if teacher.prompt_tokens]
    arm_nodes = max(1, math.ceil(work.gpus / gpu.gpus))
    at_once = max(1, gpu.gpus // max(work.gpus, 1))  # arms that share one node
    scoring = FORWARD * work.tokens
    found.append(_timed(work, "reference", gpu, scoring, work.tokens, work.gpus, arm_nodes))
    step = FORWARD + BACKWARD + WEIGHT_GRADIENTS * work.all_weights + FORWARD * work.recomputes
    tokens = work.train_tokens * work.epochs
    arm = _timed(work, "train", gpu, step * tokens, tokens, work.gpus, arm_nodes)
    found.append(replace(arm, stage=ONE_ARM))
    found.append(_sweep(work, arm, gpu, at_once, within_hours))
    if work.answer_tokens:
        generate = _timed(
            work, "generate", gpu, FORWARD * work.answer_tokens, work.answer_tokens, work.gpus,
            arm_nodes, busy=BUSY_GENERATING,
        )  # fmt: skip
        found += [
            generate,
            _need("evaluate", annotate, 1, work.judge_hours, "limits of the judge", work.judge_usd),
        ]
    hours = sum(need.hours for need in found if need.stage != ONE_ARM)
    head = machines["head"]
    bought = _need("head", head, 1, hours, "as long as all stages, on demand")
    return [*found, replace(bought, spot=bought.usd)]


def _teacher(teacher: Hosted, gpu: Machine) -> Need:
    """One after the other: each may take every GPU."""
    seconds, basis = 0.0, "hours not known: its name tells no size, so they are not counted"
    if teacher.parameters:
        work = teacher.prompt_tokens / BUSY + teacher.answer_tokens / BUSY_GENERATING
        seconds = FORWARD * teacher.parameters * work / (gpu.tflops * 1e12 * teacher.gpus)
        share = f"{BUSY:.0%} reading, {BUSY_GENERATING:.0%} writing"
        basis = f"{share} of {gpu.tflops:.0f} TFLOP/s, assumed"
    nodes = math.ceil(teacher.gpus / gpu.gpus)
    return _need(f"teacher {teacher.name}", gpu, nodes, seconds / 3600, basis)


def _timed(
    work: Work, stage: str, gpu: Machine, operations: float, tokens: int, gpus: int, nodes: int,
    *, busy: float = BUSY,
) -> Need:  # fmt: skip
    """operations: a weight. Measured tokens a second are believed before arithmetic."""
    gpus = max(gpus, 1)
    if rate := work.rates.get(stage):
        seconds, basis = tokens / (rate * gpus), f"{rate:,.0f} tokens a second and GPU, measured"
    else:
        seconds = operations * work.parameters / (gpu.tflops * 1e12 * busy * gpus)
        basis = f"{busy:.0%} of {gpu.tflops:.0f} TFLOP/s, assumed"
    return _need(stage, gpu, nodes, seconds / 3600, basis)


def _sweep(work: Work, arm: Need, gpu: Machine, at_once: int, within: float | None) -> Need:
    """All arms, as many side by side as fit on the nodes."""
    nodes = arm.nodes
    while True:
        side = at_once * nodes if at_once > 1 else nodes // arm.nodes
        hours = math.ceil(work.arms / side) * arm.hours
        if within is None or hours <= within or side >= work.arms:
            return _need("sweep", gpu, nodes, hours, f"{work.arms} arms, {side} at a time")
        nodes += arm.nodes


def _need(
    stage: str, machine: Machine, nodes: int, hours: float, basis: str, fees: float | None = 0.0
) -> Need:
    time = nodes * hours
    spot = None if machine.spot is None else time * machine.spot
    return Need(stage, machine.group, nodes, hours, time * machine.usd, spot, fees, basis)


def sized(text: str, found: list[Need]) -> str:
    """A cluster YAML of cluster/clouds with its groups as large as the needs; groups without a
    need may not start at all."""
    most: dict[str, int] = {}
    for need in found:
        most[need.group] = max(most.get(need.group, 0), need.nodes)
    lines, group = [], ""
    for line in text.splitlines():
        if line.startswith("  ") and not line.startswith("   ") and line.endswith(":"):
            group = line.strip().rstrip(":")
        if line.startswith("    max_workers:"):
            line = f"    max_workers: {most.get(group, 0)}"
        if line.startswith("max_workers:"):
            line = f"max_workers: {sum(n for name, n in most.items() if name != 'head')}"
        lines.append(line)
    return "\n".join(lines) + "\n"
