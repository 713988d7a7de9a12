"""The page of a large run: seconds to write it, its size, seconds to open and search it.

Run as: python benchmarks/page.py [pairs.parquet ...] [--pairs 60000]. Made-up annotations of three
teachers and three prompts on the given pairs (repeated until there are enough; none: made-up
words). The browser's part needs Chromium and Playwright, and is left out with a word where they are
not.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from schedule import PANEL, make_annotations

from sp2dpo_ray.core.pairs import Pair, read_pairs
from sp2dpo_ray.core.schedule.audit import audit_list, doubted
from sp2dpo_ray.core.schedule.build import build_schedule
from sp2dpo_ray.core.schedule.recipe import Recipe
from sp2dpo_ray.report.page import PageData, write_page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--pairs", type=int, default=60_000)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sp2dpo-benchmark-") as name:
        folder = Path(name)
        data = page_data(folder / "annotations.parquet", chosen.files, chosen.pairs)
        (folder / "report").mkdir()
        start = time.perf_counter()
        write_page(data, folder / "report")
        seconds = time.perf_counter() - start
        size = sum(path.stat().st_size for path in folder.rglob("report/**/*") if path.is_file())
        index = (folder / "report" / "index.html").stat().st_size
        print("| what | measured |\n|---|---|")
        print(f"| write the page of {chosen.pairs:,} pairs | {seconds:.1f} s |")
        print(f"| page, and all with the pairs | {index / 1e6:.1f} MB, {size / 1e6:.0f} MB |")
        for what, took in in_a_browser(folder / "report" / "index.html", chosen.pairs).items():
            print(f"| {what} | {took:.2f} s |")


def page_data(path: Path, files: list[Path], count: int) -> PageData:
    """A page without arms."""
    make_annotations(path, count)
    made = build_schedule(pq.read_table(path), Recipe(PANEL))
    schedule = made.table
    for name in made.diagnostics.column_names[1:]:
        schedule = schedule.append_column(name, made.diagnostics[name])
    ids = schedule["prompt_id"].to_pylist()
    given = [pair for file in files for pair in read_pairs(pq.read_table(file))]
    texts = [pair for pair in given if isinstance(pair, Pair)] or _made_up()
    pairs = {
        name: replace(pair, prompt_id=name)
        for name, pair in zip(ids, islice(cycle(texts), len(ids)), strict=True)
    }
    listed = audit_list(schedule, PANEL, each=40, sample=120, seed=0)
    return PageData(
        lambda_record={"lambda_id": "0" * 64, "config": {"run": {"name": "benchmark"}}},
        stages={}, panel=PANEL, schedule=schedule, digest="0" * 64, figures=made.quality,
        pairs=pairs, score_gap=None, flipped=doubted(schedule, PANEL),
        listed=dict(zip(*listed.select(["prompt_id", "why"]).to_pydict().values(), strict=True)),
        arms=[], curves={}, judged=[], betas={}, by_category={}, without_model={}, predictors=[],
        languages=[], prompt_languages=dict.fromkeys(ids, "en"), costs=[],
    )  # fmt: skip


def _made_up() -> list[Pair]:
    draw = np.random.default_rng(0)
    words = [f"word{number}" for number in range(5_000)]

    def text(count: int) -> str:
        return " ".join(words[i] for i in draw.integers(0, len(words), count))

    turns = ([{"role": "user", "content": text(40)}] for _ in range(2_000))
    return [Pair("", turn, text(200), text(180)) for turn in turns]


def in_a_browser(page: Path, count: int) -> dict[str, float]:
    """Seconds by what was done; empty where there is no browser."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        print("no Chromium on this machine: the browser's part is left out")
        return {}
    from playwright.sync_api import sync_playwright

    took: dict[str, float] = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        opened = browser.new_page()
        told = opened.locator("#count")

        def timed(what: str, do: Any, wait: Any) -> None:
            start = time.perf_counter()
            do()
            wait()
            took[what] = time.perf_counter() - start

        def all_there() -> None:
            told.filter(has_text=f"of {count:,}").wait_for(timeout=120_000)

        def none_there() -> None:
            told.filter(has_text="no pair like that").wait_for(timeout=600_000)

        timed("open it, all charts drawn", lambda: opened.goto(page.as_uri()), all_there)
        first = opened.locator("#found button").first
        timed("open a pair", first.click, opened.locator("#pair .text").first.wait_for)
        timed("search the prompts", lambda: opened.fill("#search", "zqxj zqxj"), none_there)
        opened.fill("#search", "")
        all_there()
        opened.check("#whole")
        timed("search all texts", lambda: opened.fill("#search", "zqxj zqxj"), none_there)
        browser.close()
    return took


if __name__ == "__main__":
    main()
