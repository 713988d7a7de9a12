"""A sweep of one student over twenty arms, against twenty runs of tuned TRL.

Run as: python benchmarks/sweep.py PAIRS.parquet [--pairs 128] [--runs 3] [--arms 4]. Both sides are
whole commands on all cores, start and loading included: `sp2dpo reference` once and `sp2dpo sweep`
over so many arms, two at once on two cores; TRL with precomputed reference and batches by length,
one process a run, one after another. What was measured is multiplied to twenty arms, and said so.
The student, LoRA and lengths are those of `benchmarks/train.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq
import yaml

TWENTY = 20
HELD_OUT = 4  # a sweep wants two pairs at least to choose with and to report
BETAS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source")
    parser.add_argument("--pairs", type=int, default=128)
    parser.add_argument("--runs", type=int, default=3, help="of TRL")
    parser.add_argument("--arms", type=int, default=4, help="of ours")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sp2dpo-benchmark-") as folder:
        ours = sweep(Path(folder), chosen)
    theirs = [trl(chosen) for _ in range(chosen.runs)]
    per_arm, per_run = ours["sweep"] / chosen.arms, statistics.median(theirs)
    whole = ours["reference"] + TWENTY * per_arm
    print(f"\n{os.cpu_count()} cores, {platform.machine()}; {chosen.pairs} pairs, one epoch\n")
    print(
        f"| who | measured | an arm, s | {TWENTY} arms, s | reference passes |\n"
        "|---|---|---|---|---|"
    )
    told = f"{chosen.arms} arms, {ours['at_once']} at once"
    print(f"| ours | {told} | {per_arm:.1f} | {whole:,.0f} | "
          f"{ours['references']} |")  # fmt: skip
    print(f"| TRL tuned | {chosen.runs} runs: {', '.join(f'{s:.0f}' for s in theirs)} | "
          f"{per_run:.1f} | {TWENTY * per_run:,.0f} | {TWENTY} |")  # fmt: skip
    print(f"\n{TWENTY * per_run / whole:.2f} times less time on the same cores")


def sweep(folder: Path, chosen: argparse.Namespace) -> dict[str, int | float]:
    """Seconds of the commands `reference` and `sweep`."""
    pq.write_table(pq.read_table(chosen.source).slice(0, chosen.pairs), folder / "pairs.parquet")
    eval_rows = pq.read_table(chosen.source).slice(chosen.pairs, HELD_OUT)
    pq.write_table(eval_rows, folder / "eval.parquet")
    config = {
        "run": {"name": "sweep", "storage": str(folder / "runs")},
        "data": {"source": str(folder / "pairs.parquet"),
                 "eval_source": str(folder / "eval.parquet")},
        "teachers": [{"name": "rules", "provider": "offline", "model": "rules"}],
        "student": {"model": "tiny", "tiny": {"vocabulary": 8192, "layers": 8, "hidden": 256,
                                              "heads": 8, "steps": 0}},
        "train": {"max_length": 1024, "max_prompt_length": 1023, "pairs_per_step": 16,
                  "tokens_per_batch": 1024, "precision": "fp32", "workers": 1,
                  "gpus_per_worker": 0, "head_mib": 16},
        "sweep": {"arms": [f"dpo:{beta}" for beta in BETAS[: chosen.arms]]},
    }  # fmt: skip
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    seconds = {}
    for stage in ("prepare", "student", "reference", "sweep"):
        start = time.perf_counter()
        command = [sys.executable, "-m", "sp2dpo_ray", stage, str(path), "--json"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds[stage] = time.perf_counter() - start
        print(f"ours, {stage}: {seconds[stage]:.1f} s", file=sys.stderr, flush=True)
    references = len(list((folder / "runs" / "sweep" / "reference").iterdir()))
    return {**seconds, "references": references, "at_once": os.cpu_count() or 1}


def trl(chosen: argparse.Namespace) -> float:
    """Seconds of one whole process."""
    name = "TRL 1.16 tuned"
    with tempfile.TemporaryDirectory(prefix="sp2dpo-benchmark-") as student:
        from train import make_student  # the file beside this one

        make_student(chosen.source, chosen.pairs, Path(student))
        command = [sys.executable, str(Path(__file__).with_name("train.py")), chosen.source,
                   "--pairs", str(chosen.pairs), "--child", name, student]  # fmt: skip
        start = time.perf_counter()
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        seconds = time.perf_counter() - start
    print(f"{name}: {seconds:.1f} s {json.loads(done.stdout.splitlines()[-1])}",
          file=sys.stderr, flush=True)  # fmt: skip
    return seconds


if __name__ == "__main__":
    main()
