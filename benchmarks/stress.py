"""Three hosts with real addresses: their links are cut, nodes and head are killed.

Run as root: python benchmarks/stress.py [--scenario NAME ...]. Three network namespaces on a bridge
(10.77.0.1 to .3) stand for hosts: a Ray head without cores and two nodes, with token
authentication; the run folder is shared. Each scenario hands the demo in with `sp2dpo submit run`,
disturbs one stage, and starts again what it killed. Prints, for each: seconds, calls that were
asked twice, training steps that were done twice, times the command was handed in, and whether
schedule, reference and losses are those of the undisturbed run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
BRIDGE, HOSTS = "sp2br", {"head": "10.77.0.1", "one": "10.77.0.2", "two": "10.77.0.3"}
DASHBOARD = "http://127.0.0.1:8265"
BIN = Path(sys.executable).parent
ANSWER = ('{"semantic_gap_category": "Style", "semantic_gap_magnitude": 0.4, '
          '"semantic_gap_confidence": 1}')  # fmt: skip
CONFIG = f"""
run: {{name: calm, storage: FOLDER/runs}}
data: {{source: {ROOT}/configs/demo/pairs.jsonl, eval_fraction: 0.25}}
teachers:
  - {{name: alba, provider: offline, model: rules, options: {{persona: balanced}}}}
  - {{name: slow, provider: scripted, model: script, limits: {{in_flight: 4}},
      options: {{latency_s: 0.2, default: '{ANSWER}'}}}}
student: {{model: tiny, tiny: {{vocabulary: 512, layers: 2, hidden: 64, heads: 2, steps: 20}}}}
train: {{epochs: 6, max_length: 256, max_prompt_length: 128, learning_rate: 5.0e-4,
  pairs_per_step: 8, tokens_per_batch: 2048, precision: fp32, workers: 2, gpus_per_worker: 0,
  save_steps: 20, max_failures: 3}}
sweep: {{arms: ["jmamp"]}}
"""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@dataclass
class Fleet:
    """Hosts as namespaces; the Ray processes of each."""

    folder: Path
    token: str = field(default_factory=lambda: secrets.token_hex(32))
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __enter__(self) -> Fleet:
        self.__exit__()
        ip("link", "add", BRIDGE, "type", "bridge")
        ip("link", "set", BRIDGE, "up")
        for name, address in HOSTS.items():
            space = f"sp2{name}"
            ip("netns", "add", space)
            ip("link", "add", f"v{name}", "type", "veth", "peer", "name", "eth0", "netns", space)
            ip("link", "set", f"v{name}", "master", BRIDGE, "up")
            ip("-n", space, "addr", "add", f"{address}/24", "dev", "eth0")
            ip("-n", space, "link", "set", "eth0", "up")
            ip("-n", space, "link", "set", "lo", "up")
        self.start("head")
        for name in ("one", "two"):
            self.start(name)
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self.running):
            self.kill(name)
        for name in HOSTS:
            subprocess.run(["ip", "link", "del", f"v{name}"], capture_output=True)
            subprocess.run(["ip", "netns", "del", f"sp2{name}"], capture_output=True)
        subprocess.run(["ip", "link", "del", BRIDGE], capture_output=True)

    def command(self, host: str, *words: str) -> subprocess.Popen[bytes]:
        """A process on a host, with the cluster's token and no other Ray's settings."""
        own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token,
               "RAY_USAGE_STATS_ENABLED": "0", "PATH": f"{BIN}:{os.environ['PATH']}"}  # fmt: skip
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        log = (self.folder / f"{host}.log").open("ab")
        return subprocess.Popen(
            ["ip", "netns", "exec", f"sp2{host}", *words],
            env=kept | own, cwd=self.folder, stdout=subprocess.PIPE if "submit" in words else log,
            stderr=log,
        )  # fmt: skip

    def start(self, host: str) -> None:
        where = tempfile.mkdtemp(prefix=f"s{host[0]}-", dir="/tmp")  # sockets have short names
        common = ("--block", f"--node-ip-address={HOSTS[host]}", f"--temp-dir={where}",
                  f"--object-store-memory={150 << 20}", "--disable-usage-stats")  # fmt: skip
        if host == "head":
            words = ("--head", "--num-cpus=0", "--port=6379", "--dashboard-host=127.0.0.1")
        else:
            words = (f"--address={HOSTS['head']}:6379", "--num-cpus=2")
        self.running[host] = self.command(host, str(BIN / "ray"), "start", *words, *common)
        time.sleep(12 if host == "head" else 3)

    def kill(self, host: str) -> None:
        family = []
        with contextlib.suppress(psutil.NoSuchProcess):  # it may have ended by itself
            process = psutil.Process(self.running.pop(host).pid)
            family = [process, *process.children(recursive=True)]
        for one in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(family, timeout=20)

    def link(self, host: str, state: str) -> None:
        ip("link", "set", f"v{host}", state)


GIVEN_UP_S = 30  # without a sign of a node Ray takes it for lost
Disturb = Callable[[Fleet], None]


def cut(seconds: float) -> Disturb:
    """The link of a node goes, and comes back; a node that was given up meanwhile ends by itself,
    and is started again as a supervisor would."""

    def disturb(fleet: Fleet) -> None:
        fleet.link("one", "down")
        time.sleep(seconds)
        fleet.link("one", "up")
        deadline = time.monotonic() + 30
        while seconds > GIVEN_UP_S and time.monotonic() < deadline:
            if fleet.running["one"].poll() is not None:
                fleet.kill("one")
                fleet.start("one")
                break
            time.sleep(0.5)

    return disturb


def lose(host: str) -> Disturb:
    """A host dies and is started again: its disk is another one."""

    def disturb(fleet: Fleet) -> None:
        fleet.kill(host)
        if host == "head":  # nodes of a lost head end by themselves; the new one wants new ones
            for node in ("one", "two"):
                fleet.kill(node)
            fleet.start("head")
            fleet.start("two")
        fleet.start("one" if host == "head" else host)

    return disturb


def annotating(run: Path) -> bool:
    return sum(p.read_bytes().count(b'"result"') for p in run.glob("journal/slow/*.jsonl")) > 150


def referring(run: Path) -> bool:
    return any(run.glob("reference/.*-parts/*.parquet"))


def training(run: Path) -> bool:
    return any(run.glob("train/jmamp/checkpoints/**/part-0.json"))


# name: when, what; the head's loss ends the job, and the command is handed in once more
SCENARIOS: dict[str, tuple[Callable[[Path], bool], Disturb] | None] = {
    "calm": None,
    "annotate, link cut for 5 s": (annotating, cut(5)),
    "annotate, link cut for 90 s": (annotating, cut(90)),
    "annotate, node lost": (annotating, lose("one")),
    "reference, node lost": (referring, lose("one")),
    "train, link cut for 5 s": (training, cut(5)),
    "train, node lost": (training, lose("one")),
    "annotate, head lost": (annotating, lose("head")),
    "train, head lost": (training, lose("head")),
}


def attempt(fleet: Fleet, name: str, disturb: bool) -> tuple[int, int]:
    """Hand the command in; its exit code, and the steps that its training did twice."""
    run = fleet.folder / "runs" / name
    job = fleet.command(
        "head", sys.executable, "-m", "sp2dpo_ray", "submit", "run", "config.yaml", "--address",
        DASHBOARD, "--json", "--set", f"run.name={name}",
    )  # fmt: skip
    found = SCENARIOS[next(each for each in SCENARIOS if slug(each) == name)]
    metrics = run / "train" / "jmamp" / "metrics.jsonl"
    most = again = 0
    while job.poll() is None:
        if disturb and found is not None and found[0](run):
            found[1](fleet)
            disturb = False
        steps = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
        again += max(0, most - steps)
        most = steps
        time.sleep(0.05)
    assert not (disturb and found), f"{name} was over before it could be disturbed"
    return job.returncode, again


def slug(name: str) -> str:
    return name.replace(", ", "-").replace(" ", "-")


def asked_twice(run: Path) -> int:
    """Requests beyond one a call: cut off and asked again."""
    asked: Counter[str] = Counter()
    for path in run.glob("journal/*/*.jsonl"):
        for line in path.read_bytes().splitlines():
            entry = json.loads(line[: line.rfind(b',"crc"')] + b"}")
            if entry["kind"] == "intent":
                asked[entry["key"]] += 1
    return sum(count - 1 for count in asked.values())


def same(run: Path, calm: Path) -> str:
    """What is equal to the undisturbed run: bytes of the tables, numbers of the losses."""
    found = []
    for name, pattern in (("schedule", "schedule/schedule.parquet"),
                          ("reference", "reference/*/reference.parquet")):  # fmt: skip
        (one,), (other,) = (list(base.glob(pattern)) for base in (run, calm))
        found.append(name if one.read_bytes() == other.read_bytes() else f"NOT {name}")
    losses = [
        [json.loads(line)["loss"] for line in (base / "train/jmamp/metrics.jsonl").open()]
        for base in (run, calm)
    ]
    found.append("losses" if losses[0] == losses[1] else "NOT losses")
    return ", ".join(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenario", action="append", choices=[*SCENARIOS])
    options = parser.parse_args()
    if os.geteuid() or not shutil.which("ip"):
        raise SystemExit("network namespaces need root and iproute2; nothing was measured")
    chosen = ["calm", *(name for name in options.scenario or SCENARIOS if name != "calm")]
    folder = Path(tempfile.mkdtemp(prefix="stress-"))
    (folder / "config.yaml").write_text(CONFIG.replace("FOLDER", str(folder)))
    print("| disturbed | seconds | asked twice | steps twice | handed in | as undisturbed |")
    print("|---|---:|---:|---:|---:|---|", flush=True)
    for name in chosen:
        with Fleet(folder) as fleet:
            start, code, again, times = time.monotonic(), -1, 0, 0
            while code != 0 and times < 4:
                code, more = attempt(fleet, slug(name), disturb=times == 0)
                again, times = again + more, times + 1
            seconds = time.monotonic() - start
        run, calm = folder / "runs" / slug(name), folder / "runs" / "calm"
        equal = same(run, calm) if code == 0 else f"FAILED with exit code {code}"
        print(f"| {name} | {seconds:.0f} | {asked_twice(run)} | {again} | {times} | {equal} |",
              flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
