"""Seconds and memory from an annotations table to a published schedule, against plain pandas.

Run as: python benchmarks/schedule.py [--annotations 549207 5492070] [--laps 3]. Made-up annotations
of three teachers and three prompts; each lap is a process of its own, the contestants take turns,
medians are printed. Ours publishes everything: 64 columns as Parquet and CSV, ten further
estimators, diagnostics, figures, hashes, flushed to disk. pandas reads four columns and writes the
default beta alone: median over prompts, map, mean over teachers. Needs pandas (`pip install
pandas`).
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sp2dpo_ray.core.artifact import Provenance, publish
from sp2dpo_ray.core.hashing import sha256_hex
from sp2dpo_ray.core.schedule.build import write_schedule
from sp2dpo_ray.core.schedule.grid import Panel
from sp2dpo_ray.core.schedule.reading import ANNOTATION_SCHEMA
from sp2dpo_ray.core.schedule.recipe import Recipe
from sp2dpo_ray.core.schedule.verify import verify
from sp2dpo_ray.core.taxonomy import CATEGORIES

PANEL = Panel(("qwen", "openai", "gemini"), ("v1", "v2", "v3"))
CALLS = len(PANEL.calls)
PAIRS_AT_ONCE = 2_000  # as the stage `annotate` writes its table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--annotations", type=int, nargs="+", default=[549_207, 5_492_070])
    parser.add_argument("--laps", type=int, default=3)
    parser.add_argument("--child", nargs=2)
    chosen = parser.parse_args()
    if chosen.child:
        print(json.dumps(CONTESTANTS[chosen.child[0]](Path(chosen.child[1]))))
        return
    print("| annotations | pairs | who | seconds | peak memory, MB | above an idle process |")
    print("|---|---|---|---|---|---|")
    for count in chosen.annotations:
        with tempfile.TemporaryDirectory(prefix="sp2dpo-benchmark-") as folder:
            path = Path(folder) / "annotations.parquet"
            make_annotations(path, count // CALLS)
            laps: dict[str, list[dict[str, float]]] = {name: [] for name in CONTESTANTS}
            for _ in range(chosen.laps):
                for name in CONTESTANTS:
                    laps[name].append(_lap(name, path))
            for name, rows in laps.items():
                seconds, peak, above = (
                    statistics.median(row[key] for row in rows) for key in ("s", "mb", "above")
                )
                print(f"| {count:,} | {count // CALLS:,} | {name} | {seconds:.2f} | {peak:,.0f} "
                      f"| {above:,.0f} |", flush=True)  # fmt: skip


def _lap(name: str, path: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", name, str(path)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def ours(path: Path) -> dict[str, float]:
    idle, start = _peak_mb(), time.perf_counter()
    folder = path.parent / "schedule"
    recipe = Recipe(PANEL)
    settings = {"recipe": recipe.json}
    with publish(folder, Provenance("schedule", "", "", {}, settings)) as draft:
        write_schedule(path, recipe, draft.path)
    return {"s": time.perf_counter() - start, "mb": _peak_mb(), "above": _peak_mb() - idle}


def verification(path: Path) -> dict[str, float]:
    idle, start = _peak_mb(), time.perf_counter()
    for _ in verify(path.parent / "schedule"):
        pass
    return {"s": time.perf_counter() - start, "mb": _peak_mb(), "above": _peak_mb() - idle}


def plain_pandas(path: Path) -> dict[str, float]:
    import pandas as pd

    idle, start = _peak_mb(), time.perf_counter()
    table = pd.read_parquet(path, columns=["prompt_id", "teacher", "magnitude", "confidence"])
    table["gap"] = table["magnitude"] * table["confidence"]
    gap = table.groupby(["prompt_id", "teacher"])["gap"].median()
    beta = (0.03 + 0.27 * gap.clip(0, 1)).groupby("prompt_id").mean()
    beta.to_frame("beta").to_parquet(path.parent / "pandas.parquet")
    return {"s": time.perf_counter() - start, "mb": _peak_mb(), "above": _peak_mb() - idle}


CONTESTANTS = {
    "ours, everything published": ours,
    "pandas groupby, the default beta alone": plain_pandas,
    "`sp2dpo verify` of ours": verification,
}


def make_annotations(path: Path, pairs: int) -> None:
    """The table as `annotate` writes it, with the columns that a schedule does not read."""
    draw = np.random.default_rng(0)
    teachers = [teacher for _, _, teacher, _ in PANEL.calls]
    variants = [variant for _, _, _, variant in PANEL.calls]
    with pq.ParquetWriter(path, ANNOTATION_SCHEMA, compression="zstd") as writer:
        for start in range(0, pairs, PAIRS_AT_ONCE):
            writer.write_table(_made_up(draw, start, min(PAIRS_AT_ONCE, pairs - start),
                                        teachers, variants))  # fmt: skip


def _made_up(
    draw: np.random.Generator, start: int, count: int, teachers: list[str], variants: list[str]
) -> pa.Table:
    rows = count * CALLS
    ids = [sha256_hex(start + i) for i in range(count)]
    gap = np.repeat(draw.random(count), CALLS)
    columns: dict[str, Any] = {
        "prompt_id": np.repeat(ids, CALLS),
        "split": ["train"] * rows,
        "teacher": teachers * count,
        "variant": variants * count,
        "key": [sha256_hex([start, i]) for i in range(rows)],
        "outcome": ["ok"] * rows,
        "detail": [""] * rows,
        "category": np.array([str(c) for c in CATEGORIES])[draw.integers(0, 6, rows)],
        "magnitude": np.round(np.clip(gap + draw.normal(0, 0.1, rows), 0, 1), 2),
        "confidence": np.round(draw.random(rows), 2),
        "text": ["x" * 110] * rows,
        "served_model": [f"{teacher}-1" for teacher in teachers] * count,
        "prompt_tokens": np.full(rows, 900),
        "completion_tokens": np.full(rows, 40),
    }
    return pa.table(columns, schema=ANNOTATION_SCHEMA)


if __name__ == "__main__":
    main()
