"""Seconds of every stage of one run, and its arms, as Markdown.

Run as: python benchmarks/stages.py CONFIG [--set key=value ...]. Uses a fresh run folder, so
nothing is reused. Prints the machine first; machines drift, so compare within one run only.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="sp2dpo-benchmark-") as storage:
        command = [sys.executable, "-m", "sp2dpo_ray", "run", *sys.argv[1:], "--json",
                   "--set", f"run.storage={storage}"]  # fmt: skip
        start = time.perf_counter()
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        total = time.perf_counter() - start
        print_tables(json.loads(done.stdout.splitlines()[-1]), total)


def print_tables(summary: dict[str, Any], total: float) -> None:
    print(f"\n{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}\n")
    print("| stage | seconds | figures |\n|---|---|---|")
    for name in ("prepare", "student", "annotate", "reference"):
        row = summary[name]
        print(f"| {name} | {row['seconds']:.1f} | {_figures(name, row)} |")
    for arm, row in summary["train"].items():
        tokens = f"{row['tokens']:,} tokens in {row['step_seconds']:.1f} s of steps"
        print(f"| train {arm} | {row['seconds']:.1f} | {row['steps']} steps, {tokens} |")
    print(f"| everything | {total:.1f} | with starts of Python and Ray, schedule and page |\n")
    print("| arm | held-out pairs | accuracy | margin in nats | less baseline | verdict |")
    print("|---|---|---|---|---|---|")
    for row in summary["report"]["arms"]:
        gain = _interval(row["gain"]) if row["gain"] else ""
        accuracy, margin = _interval(row["accuracy"]), _interval(row["margin"])
        print(f"| {row['arm']} | {row['pairs']} | {accuracy} | {margin} | {gain} "
              f"| {row['verdict']} |")  # fmt: skip


def _figures(name: str, row: dict[str, Any]) -> str:
    if name == "prepare":
        return f"{row['rows_in']:,} rows, {row['pairs']:,} + {row['eval_pairs']:,} pairs"
    if name == "annotate":
        return f"{row['calls_made']:,} calls"
    return f"{row['pairs']:,} pairs" if name == "reference" else f"{row['model']}"


def _interval(value: dict[str, float]) -> str:
    return f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


if __name__ == "__main__":
    if len(sys.argv) < 2 or not Path(sys.argv[1]).is_file():
        sys.exit(__doc__)
    main()
