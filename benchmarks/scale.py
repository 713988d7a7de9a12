"""How annotation grows from thousands of pairs to a billion: a discrete-event simulation.

Run as: python benchmarks/scale.py [--check]. Calls go in chunks through actors: a chunk waits for
its teacher's limit, for its actor's core and for answers; some calls fail and come again, nodes are
reclaimed and come back. With --check the measured runs of docs/benchmarks.md are simulated and set
beside what was measured; without it, runs of 61 thousand to a billion pairs. Nothing is asked, and
the same seed gives the same figures. Granted rates and two actors were fitted: docs/scaling.md.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import simpy

# measured, docs/benchmarks.md: CPU of one call in an actor; bytes of a settled call in the driver's
# record; bytes of a pair while its schedule is made, and seconds; of the journal, a call
CPU_MS, RECORD_BYTES, SCHEDULE_BYTES, SCHEDULE_S = 1.5, 16, 1_000, 1.70 / 61_023
JOURNAL_BYTES = 1_400
START_S = 8.0  # Ray, actors, preflight
CHUNKS = 4_000  # of a teacher's calls; four times as many move the hours by less than a thousandth


@dataclass(frozen=True)
class Teacher:
    """rpm: of the account, None without a limit. latency_s: mean of an answer. fails: share of
    requests that come again. usd: of a call."""

    rpm: float | None
    latency_s: float = 1.5
    in_flight: int = 512
    fails: float = 0.01
    usd: float = 0.00025


@dataclass(frozen=True)
class World:
    """pairs: each asked with three prompts. An actor has one core; beside_ms: CPU of a call that
    others (a local server) spend on the same `cores` of a node. lost_h: mean hours until a node is
    reclaimed, None never; back_s: until another takes its place."""

    pairs: int
    teachers: tuple[Teacher, ...]
    nodes: int = 1
    actors_per_node: int = 2
    cores: float = 2.0
    cpu_ms: float = CPU_MS
    beside_ms: float = 0.0
    lost_h: float | None = None
    back_s: float = 180.0
    prompts: int = 3
    retries: int = 3
    seed: int = 0


class Annotation:
    """One run of the simulated stage."""

    def __init__(self, world: World) -> None:
        self.world, self.env = world, simpy.Environment()
        self.draw = random.Random(world.seed)
        self.free_at = [0.0] * len(world.teachers)
        self.cores_free_at = 0.0
        self.requests = self.twice = self.losses = 0
        self.actors = world.nodes * world.actors_per_node
        self.cpus = [simpy.Resource(self.env, 1) for _ in range(self.actors)]
        self.up = [True] * world.nodes
        self.left = [world.pairs * world.prompts] * len(world.teachers)
        self.most = [max(1, math.ceil(self.left[0] / CHUNKS))] * len(world.teachers)
        if world.lost_h:  # losses are seen between chunks: they are short beside a node's absence
            short = [int(self.rate(teacher) * world.back_s / 10) for teacher in world.teachers]
            self.most = [max(1, min(pair)) for pair in zip(self.most, short, strict=True)]

    def run(self) -> dict[str, float]:
        lanes = [
            self.env.process(self.lane(actor, index))
            for actor in range(self.actors)
            for index in range(len(self.world.teachers))
        ]
        if self.world.lost_h:
            for node in range(self.world.nodes):
                self.env.process(self.reclaimed(node))
        self.env.run(simpy.AllOf(self.env, lanes))
        world = self.world
        calls = world.pairs * world.prompts * len(world.teachers)
        usd = sum(t.usd for t in world.teachers) * world.pairs * world.prompts
        return {
            "calls": calls,
            "hours": (self.env.now + START_S) / 3600,
            "rate": calls / self.env.now,
            "usd": usd * (1 + self.twice / calls),
            **{"requests": self.requests, "losses": self.losses, "twice": self.twice},
            "record_gib": calls * RECORD_BYTES / 2**30,
            "schedule_gib": world.pairs * SCHEDULE_BYTES / 2**30,
            "schedule_h": world.pairs * SCHEDULE_S / 3600,
            "journal_gib": calls * JOURNAL_BYTES / 2**30,
        }

    def rate(self, teacher: Teacher) -> float:
        """Calls a second that an actor makes: the least of limit, core and free requests."""
        return min(
            (teacher.rpm or math.inf) / 60 / self.actors,
            1000 / self.world.cpu_ms / len(self.world.teachers),
            max(1, teacher.in_flight // self.actors) / teacher.latency_s,
        )

    def lane(self, actor: int, index: int) -> Iterator[Any]:
        """What one actor asks one teacher, chunk by chunk, until none is left. Chunks overlap: the
        next one starts as soon as limit, core and free requests allow."""
        world, teacher = self.world, self.world.teachers[index]
        node, in_flight = actor // world.actors_per_node, max(1, teacher.in_flight // self.actors)
        slots_free_at = 0.0
        while self.left[index] > 0:
            while not self.up[node]:
                yield self.env.timeout(world.back_s / 10)
            size = min(self.most[index], self.left[index])
            self.left[index] -= size
            sent = self.sent(size, teacher)
            yield from self.limit(index, sent)
            with self.cpus[actor].request() as turn:
                yield turn
                yield self.env.timeout(sent * world.cpu_ms / 1000)
            if world.beside_ms:  # others on the same cores
                each = (world.cpu_ms + world.beside_ms) / 1000 / (world.cores * world.nodes)
                self.cores_free_at = max(self.env.now, self.cores_free_at + sent * each)
                yield self.env.timeout(self.cores_free_at - self.env.now)
            slots_free_at = max(self.env.now, slots_free_at + sent * teacher.latency_s / in_flight)
            yield self.env.timeout(slots_free_at - self.env.now)
        yield self.env.timeout(teacher.latency_s)

    def sent(self, size: int, teacher: Teacher) -> int:
        """Requests that settle so many calls: failures come again, as often as they may."""
        sent, failing = size, float(size)
        for _ in range(self.world.retries):
            failing *= teacher.fails
            sent += int(failing) + (self.draw.random() < failing % 1)
        self.requests += sent
        return sent

    def limit(self, index: int, sent: int) -> Iterator[Any]:
        rpm = self.world.teachers[index].rpm
        if rpm is None:
            return
        start = max(self.env.now, self.free_at[index])
        self.free_at[index] = start + sent * 60 / (0.98 * rpm)
        yield self.env.timeout(self.free_at[index] - self.env.now)

    def reclaimed(self, node: int) -> Iterator[Any]:
        """A node goes: what its actors had in flight is asked again, and may have been paid."""
        assert self.world.lost_h is not None
        fate = random.Random(
            f"{self.world.seed} {node}"
        )  # its own, however calls are cut to chunks
        while True:
            yield self.env.timeout(fate.expovariate(1 / (self.world.lost_h * 3600)))
            self.up[node] = False
            self.losses += 1
            for index, teacher in enumerate(self.world.teachers):
                if self.left[index] > 0:
                    each = self.rate(teacher) * teacher.latency_s
                    self.left[index] += (again := math.ceil(self.world.actors_per_node * each))
                    self.twice += again
            yield self.env.timeout(self.world.back_s)
            self.up[node] = True


LOCAL = Teacher(None, 0.05, 64, 0.0, 0.0)
BESIDE_MS = 1.09  # of the local server and the driver; so that two actors reach what they did
FAULTS = World(400, (Teacher(6_000, 0.05, 64, 0.2, 0),) * 3, cpu_ms=1.82, beside_ms=BESIDE_MS)
MEASURED = {
    # what: (world, figure, measured)
    "600 a minute": (World(30, (Teacher(200, 0.05, 64, 0, 0),) * 3), "rpm", 0.973 * 600),
    "6,000 a minute": (World(300, (Teacher(2_000, 0.05, 64, 0, 0),) * 3), "rpm", 0.979 * 6_000),
    "30,000 a minute": (
        World(1_500, (Teacher(10_000, 0.05, 64, 0, 0),) * 3, cpu_ms=1.82, beside_ms=BESIDE_MS),
        "rpm", 0.974 * 30_000,
    ),
    "no limit, 2 actors (calibrated on it)": (
        World(1_000, (LOCAL,), cpu_ms=1.82, beside_ms=BESIDE_MS), "rpm", 687 * 60,
    ),
    "no limit, 1 actor": (
        World(1_000, (LOCAL,), actors_per_node=1, cpu_ms=1.45, beside_ms=BESIDE_MS),
        "rpm", 549 * 60,
    ),
    "no limit, 4 actors": (
        World(1_000, (LOCAL,), actors_per_node=4, cpu_ms=2.33, beside_ms=BESIDE_MS),
        "rpm", 615 * 60,
    ),
    "20 % faults, requests": (FAULTS, "requests", 4_508),
    "20 % faults, seconds with start and table": (FAULTS, "seconds", 35),
}  # fmt: skip


def check() -> None:
    print("| measured run | simulated | measured | of it |\n|---|---:|---:|---:|")
    for name, (world, figure, measured) in MEASURED.items():
        found = Annotation(world).run()
        value = {"rpm": 60 * found["rate"], "requests": found["requests"],
                 "seconds": 3600 * found["hours"]}[figure]  # fmt: skip
        print(f"| {name} | {value:,.0f} | {measured:,.0f} | {value / measured:.2f} |")


TIER = Teacher(5_000, 1.5, 512)
WORLDS = {
    "61 thousand, 5,000 a minute each": World(61_023, (TIER,) * 3),
    "the same on two spot nodes, reclaimed every 20 min": World(
        61_023, (TIER,) * 3, nodes=2, lost_h=1 / 3
    ),
    "61 thousand, 500 a minute each": World(61_023, (replace(TIER, rpm=500),) * 3),
    "a million, 5,000 a minute each": World(10**6, (TIER,) * 3),
    "a million, 30,000 a minute each": World(10**6, (replace(TIER, rpm=30_000),) * 3, nodes=2),
    "ten million, 30,000 a minute each": World(10**7, (replace(TIER, rpm=30_000),) * 3, nodes=2),
    "a hundred million, 30,000, 8 nodes": World(10**8, (replace(TIER, rpm=30_000),) * 3, nodes=8),
    "a billion, 30,000, 8 nodes": World(10**9, (replace(TIER, rpm=30_000),) * 3, nodes=8),
    "a billion, no limits, 8 nodes": World(
        10**9, (replace(TIER, rpm=None, in_flight=8_192),) * 3, nodes=8, lost_h=24
    ),
    "a billion, no limits, 64 nodes": World(
        10**9, (replace(TIER, rpm=None, in_flight=65_536),) * 3, nodes=64, lost_h=24
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="against the measured runs")
    if parser.parse_args().check:
        check()
        return
    heads = ("pairs and limits", "hours", "calls/s", "USD", "nodes lost", "asked twice",
             "record GiB", "journal GiB", "schedule GiB", "schedule h")  # fmt: skip
    print(f"| {' | '.join(heads)} |\n|---|{'---:|' * (len(heads) - 1)}")
    for name, world in WORLDS.items():
        found = Annotation(world).run()
        print(
            f"| {name} | {found['hours']:,.1f} | {found['rate']:,.0f} | {found['usd']:,.0f} "
            f"| {found['losses']:,} | {found['twice']:,} "
            f"| {found['record_gib']:,.2f} | {found['journal_gib']:,.1f} "
            f"| {found['schedule_gib']:,.2f} | {found['schedule_h']:,.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
