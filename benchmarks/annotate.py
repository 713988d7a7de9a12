"""Annotation against a local server that speaks the three wire formats: rates, faults, memory.

Run as: python benchmarks/annotate.py {rate,speed,faults,memory} [--quick]. Prints Markdown tables
and the machine first; machines drift, so compare within one run only. The server runs beside the
client and takes its share of the same cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from sp2dpo_ray.core.artifact import ROWS_AT_ONCE, Provenance, publish
from sp2dpo_ray.core.pairs import PAIR_FIELDS

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.fault_server import KEY  # noqa: E402
from tests.wires import ANSWER, BASE_URLS  # noqa: E402

PROVIDERS = ("openai", "gemini", "dashscope")
ON_AIOHTTP = "+aiohttp"  # OpenAI's SDK on the faster of its two transports
LATENCY_S = 0.05
ENVIRONMENT = os.environ | {"BENCHMARK_KEY": KEY, "NO_PROXY": "127.0.0.1"}
TEXT = "the model answers a question about rivers and gives two numbers for each of them"
WORDS = TEXT.split()


@contextmanager
def server(*options: str) -> Iterator[str]:
    """A fault server in a process of its own; yields its address."""
    command = [sys.executable, "-m", "tests.fault_server", *options]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
    finally:
        process.terminate()
        process.wait()


def figures(address: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{address}/figures") as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def write_pairs(run: Path, count: int, length: int = 60) -> None:
    """Synthetic pairs as `prepare` would leave them, written a piece at a time."""
    schema = pa.schema(PAIR_FIELDS)
    with publish(run / "pairs", Provenance("prepare", f"synthetic-{count}", "", {})) as draft:
        for name, rows in (("train", count), ("eval", 0)):
            with pq.ParquetWriter(draft.path / f"{name}.parquet", schema) as writer:
                for start in range(0, rows, ROWS_AT_ONCE):
                    numbers = range(start, min(start + ROWS_AT_ONCE, rows))
                    writer.write_table(
                        pa.table(
                            {
                                "prompt_id": [f"p{n:09d}" for n in numbers],
                                "prompt": [
                                    [{"role": "user", "content": text(n, "question", length)}]
                                    for n in numbers
                                ],
                                "chosen": [text(n, "good", 2 * length) for n in numbers],
                                "rejected": [text(n, "bad", 2 * length) for n in numbers],
                            },
                            schema=schema,
                        )
                    )


def text(number: int, kind: str, length: int) -> str:
    words = (WORDS[(number * 7 + place) % len(WORDS)] for place in range(length))
    return f"{kind} {number}: {' '.join(words)}"


def teachers(address: str, providers: tuple[str, ...], **limits: Any) -> str:
    sections = [
        {"name": provider, "provider": provider, "model": f"m-{provider}",
         "api_key_env": "BENCHMARK_KEY", "base_url": address + BASE_URLS[provider],
         "limits": limits}
        for provider in providers
    ]  # fmt: skip
    return json.dumps(sections)


@dataclass
class Watch:
    """CPU seconds and private memory of the driver and its actors, sampled while they live."""

    driver: int
    cpu: dict[int, list[tuple[float, float]]] = field(default_factory=dict)  # time, seconds
    peak: dict[str, float] = field(default_factory=dict)

    def sample(self) -> None:
        try:
            family = psutil.Process(self.driver)
            members = [family, *family.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for process in members:
            try:
                title = " ".join(process.cmdline())
                actor = "PanelActor" in title
                if not actor and process.pid != self.driver:
                    continue
                cpu = process.cpu_times()
                spent = (time.monotonic(), cpu.user + cpu.system)
                self.cpu.setdefault(process.pid, []).append(spent)
                kind = "actor" if actor else "driver"
                private = process.memory_full_info().uss / 1e6
                self.peak[kind] = max(self.peak.get(kind, 0.0), private)
            except psutil.Error:
                continue

    def actor_cpu(self, since: float) -> float:
        """CPU seconds of the actors from a moment on; processes of a machine share their clock."""
        total = 0.0
        for pid, samples in self.cpu.items():
            spent = [cpu for moment, cpu in samples if moment >= since]
            total += spent[-1] - spent[0] if spent and pid != self.driver else 0.0
        return total


@dataclass(frozen=True)
class Done:
    """One run of the stage: its summary, what the server saw, what it took."""

    summary: dict[str, Any]
    seen: dict[str, Any]
    watch: Watch
    seconds: float


def annotate(run: Path, address: str | None, *overrides: str, every_s: float = 0.5) -> Done:
    command = [sys.executable, "-m", "sp2dpo_ray", "annotate", str(ROOT / "configs/demo.yaml"),
               "--json", "--set", f"run.storage={run.parent}", "--set", f"run.name={run.name}",
               *(part for each in overrides for part in ("--set", each))]  # fmt: skip
    start = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=ENVIRONMENT
    )
    watch = Watch(process.pid)
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(every_s):
            watch.sample()

    watcher = threading.Thread(target=look)
    watcher.start()
    out, _ = process.communicate()
    ended.set()
    watcher.join()
    if process.returncode:
        sys.exit(f"annotate ended with {process.returncode}; run it by hand: {command}")
    seen = figures(address) if address else {}
    return Done(json.loads(out.splitlines()[-1]), seen, watch, time.perf_counter() - start)


def steady_rate(times: list[float], skip: int) -> float:
    """Requests a second between the first and the last tenth, start-up and end left out."""
    times = sorted(times)[skip:]
    cut = max(1, len(times) // 10)
    middle = times[cut:-cut]
    return (len(middle) - 1) / (middle[-1] - middle[0])


def rate(folder: Path, quick: bool) -> None:
    print("| granted a minute, three teachers | calls | of it reached | 429s | most by one key |")
    print("|---|---|---|---|---|")
    for rpm, pairs in ((600, 30), (6_000, 300), (30_000, 1_500)):
        run = folder / f"rate-{rpm}"
        write_pairs(run, pairs // (3 if quick else 1))
        with server("--rpm", str(rpm / 3), "--latency", str(LATENCY_S)) as address:
            limits = teachers(address, PROVIDERS, rpm=rpm // 3, in_flight=64)
            done = annotate(run, address, f"teachers={limits}")
        reached = steady_rate(done.seen["times"], 3) * 60 / rpm
        print(f"| {rpm:,} | {done.summary['calls']:,} | {reached:.3f} | "
              f"{done.seen['statuses'].get('429', 0)} | {done.seen['most_asked']} |",
              flush=True)  # fmt: skip


Ask = Callable[[str, str], Awaitable[Any]]


def bare_client(provider: str, address: str) -> Ask:
    """A plain loop's call: the SDK's own typed call with its defaults, retries off."""
    base = address + BASE_URLS[provider.removesuffix(ON_AIOHTTP)]
    if provider.startswith("openai"):
        import openai

        http = openai.DefaultAioHttpClient() if provider.endswith(ON_AIOHTTP) else None
        client = openai.AsyncOpenAI(api_key=KEY, base_url=base, max_retries=0, http_client=http)
        return lambda system, user: client.chat.completions.create(
            model="m", messages=[{"role": "system", "content": system},
                                 {"role": "user", "content": user}]
        )  # fmt: skip
    if provider == "gemini":
        from google import genai
        from google.genai import types

        options = types.HttpOptions(base_url=base, api_version="v1beta")
        gemini = genai.Client(api_key=KEY, http_options=options)
        return lambda system, user: gemini.aio.models.generate_content(
            model="m", contents=user,
            config=types.GenerateContentConfig(system_instruction=system),
        )  # fmt: skip
    import dashscope

    qwen = dashscope.AsyncClient(api_key=KEY, base_url=base, protocol="native", max_retries=0)
    return lambda system, user: qwen.chat.completions.create(
        model="m", messages=[{"role": "system", "content": system},
                             {"role": "user", "content": user}]
    )  # fmt: skip


def bare(provider: str, calls: int) -> None:
    """The loop itself, in a process of its own: prints calls a second and CPU ms a call."""
    address = os.environ["BENCHMARK_ADDRESS"]

    async def loop() -> None:
        ask = bare_client(provider, address)
        slots = asyncio.Semaphore(64)
        system = " ".join(WORDS * 12)

        async def one(number: int) -> None:
            async with slots:
                await ask(system, text(number, "bare", 300))

        await asyncio.gather(*(one(-n) for n in range(64)))
        start, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(one(n) for n in range(calls)))
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu
        print(json.dumps({"rate": calls / wall, "cpu_ms": 1000 * cpu / calls}))

    asyncio.run(loop())


def run_bare(provider: str, calls: int) -> tuple[float, float]:
    with server("--latency", str(LATENCY_S)) as address:
        command = [sys.executable, __file__, "bare", provider, str(calls)]
        out = subprocess.run(
            command, env=ENVIRONMENT | {"BENCHMARK_ADDRESS": address}, check=True,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        ).stdout  # fmt: skip
    found = json.loads(out.splitlines()[-1])
    return found["rate"], found["cpu_ms"]


def run_ours(folder: Path, provider: str, actors: int, calls: int, lap: int) -> tuple[float, float]:
    run = folder / f"speed-{provider}-{actors}-{lap}"
    write_pairs(run, calls // 3)
    with server("--latency", str(LATENCY_S)) as address:
        limits = teachers(address, (provider,), in_flight=64)
        done = annotate(
            run, address, f"teachers={limits}", f"annotate.actors={actors}", every_s=0.2
        )
    times = sorted(done.seen["times"])[1:]  # the first was the preflight's
    return steady_rate(times, 0), 1000 * done.watch.actor_cpu(times[0]) / calls


def speed(folder: Path, quick: bool, sdks: tuple[str, ...] = PROVIDERS) -> None:
    calls, laps = (1_500, 1) if quick else (3_000, 2)
    print("| SDK | who | calls/s | CPU ms a call |\n|---|---|---|---|")
    for provider in sdks:
        rows: dict[str, list[tuple[float, float]]] = {}
        for lap in range(laps):  # side by side, lap by lap: machines drift
            rows.setdefault("bare asyncio loop", []).append(run_bare(provider, calls))
            if provider == "openai":
                name = "bare asyncio loop, SDK on aiohttp"
                rows.setdefault(name, []).append(run_bare(provider + ON_AIOHTTP, calls))
            for actors in (1, 2, 4):
                name = f"annotate, {actors} actor{'s' * (actors > 1)}"
                rows.setdefault(name, []).append(run_ours(folder, provider, actors, calls, lap))
        for name, laps_ in rows.items():
            per_second, cpu = (statistics.median(each) for each in zip(*laps_, strict=True))
            print(f"| {provider} | {name} | {per_second:.0f} | {cpu:.2f} |", flush=True)


def faults(folder: Path, quick: bool) -> None:
    run = folder / "faults"
    write_pairs(run, 100 if quick else 400)
    with server("--latency", str(LATENCY_S), "--faults", "0.2") as address:
        limits = teachers(address, PROVIDERS, rpm=6_000, in_flight=64)
        done = annotate(run, address, f"teachers={limits}", "decoding.retry_base_s=0.2")
    print("| calls | requests | ended with | seconds |\n|---|---|---|---|")
    print(f"| {done.summary['calls']:,} | {len(done.seen['times']):,} | "
          f"{done.summary['outcomes']} | {done.seconds:.0f} |")  # fmt: skip


def memory(folder: Path, quick: bool) -> None:
    scripted = json.dumps([{"name": "s", "provider": "scripted", "model": "s",
                            "options": {"default": ANSWER}}])  # fmt: skip
    print(
        "| pairs | driver MB | actor MB (the largest) | calls/s | seconds |\n|---|---|---|---|---|"
    )
    for pairs in (10_000, 100_000 if quick else 1_000_000):
        run = folder / f"memory-{pairs}"
        write_pairs(run, pairs, length=20)
        done = annotate(
            run, None, f"teachers={scripted}", "prompts.variants=[v1]",
            "annotate.pairs_per_batch=256", "annotate.evaluation=false",
        )  # fmt: skip
        peak = done.watch.peak
        speed_ = pairs / done.summary["seconds"]
        print(f"| {pairs:,} | {peak['driver']:.0f} | {peak['actor']:.0f} | {speed_:,.0f} | "
              f"{done.seconds:.0f} |", flush=True)  # fmt: skip
        shutil.rmtree(run)


PARTS = {"rate": rate, "speed": speed, "faults": faults, "memory": memory}


def main() -> None:
    if sys.argv[1:2] == ["bare"]:
        return bare(sys.argv[2], int(sys.argv[3]))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--quick", action="store_true", help="a look, not a measurement")
    parser.add_argument("--sdk", choices=PROVIDERS, help="speed: this one alone")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}\n")
    with tempfile.TemporaryDirectory(prefix="sp2dpo-benchmark-") as folder:
        if options.sdk:
            speed(Path(folder), options.quick, (options.sdk,))
        else:
            PARTS[options.part](Path(folder), options.quick)
    return None


if __name__ == "__main__":
    main()
