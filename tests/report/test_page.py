"""The page: what it holds, that hostile text stays text, and that a real browser draws it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import escape

from sp2dpo_ray.core.pairs import Pair
from sp2dpo_ray.core.schedule.audit import REASONS
from sp2dpo_ray.core.schedule.build import build_schedule
from sp2dpo_ray.core.schedule.reading import ANNOTATION_SCHEMA
from sp2dpo_ray.core.schedule.recipe import Recipe
from sp2dpo_ray.evaluate.compare import compare_arms
from sp2dpo_ray.report.costs import CostRow
from sp2dpo_ray.report.figures import spearman
from sp2dpo_ray.report.page import PageData, render
from tests.core.schedule.test_columns import PANEL, annotations

HOSTILE = (
    "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    "{{ 7 * 7 }}<svg onload=alert(1)> \u202e & \" '"
)


def page_data(rows: list[dict[str, Any]] | None = None, **changes: Any) -> PageData:
    """A page of eight pairs whose every text is hostile."""
    calls = pa.Table.from_pylist(rows or annotations(8), schema=ANNOTATION_SCHEMA)
    made = build_schedule(calls, Recipe(PANEL))
    whole = made.table
    for name in made.diagnostics.column_names[1:]:
        whole = whole.append_column(name, made.diagnostics[name])
    ids = [f"e{i}" for i in range(20)]
    draw = np.random.default_rng(0)
    scores = compare_arms({name: (ids, draw.normal(size=20)) for name in ("dpo:0.1", "jmamp")},
                          "dpo:0.1")  # fmt: skip
    from dataclasses import asdict

    arms = [asdict(score) | {"title": HOSTILE, "seconds": 1.0, "tokens_per_second": 2.0}
            for score in scores]  # fmt: skip
    step = {"step": 1, "loss": 0.6, "logratio/margins": 0.1}
    values: dict[str, Any] = {
        "lambda_record": {"lambda_id": "abc", "config": {"run": {"name": HOSTILE}}},
        "stages": {HOSTILE: {"pairs": 8, "seconds": 1.25}},
        "panel": PANEL,
        "schedule": whole,
        "figures": made.quality,
        "pairs": {
            name: Pair(name, [{"role": "user", "content": HOSTILE}], HOSTILE, HOSTILE)
            for name in made.table["prompt_id"].to_pylist()
        },
        "arms": arms,
        "curves": {row["arm"]: [step, step | {"step": 2}] for row in arms},
        "costs": [
            CostRow("teacher", HOSTILE, 8, 800, 80, None),
            CostRow("judge", "x", 2, 9, 2, 0.5),
        ],
        "predictors": [HOSTILE],
        "languages": [
            {
                "language": name,
                "pairs": 4,
                "beta": 0.1,
                "teacher_std": 0.01,
                "spearman": None,
                "alpha": 0.5,
            }
            for name in ("en", HOSTILE)
        ],
        "judged": [
            {
                "model": "base",
                "baseline": "dpo:0.1",
                "items_compared": 12,
                "verdict": "worse",
                "gain": {"mean": -0.1, "low": -0.2, "high": -0.01},
                "figures": {
                    "length_controlled_winrate": 7.5,
                    "win_rate": 20.0,
                    "standard_error": 1.0,
                    "avg_length": 900.0,
                },
            },
            {
                "model": "dpo:0.1",
                "baseline": "dpo:0.1",
                "items_compared": 12,
                "verdict": "baseline",
                "gain": None,
                "figures": {
                    "length_controlled_winrate": 8.5,
                    "win_rate": 21.0,
                    "standard_error": 1.0,
                    "avg_length": 950.0,
                },
            },
        ],
        "betas": {row["arm"]: [0.03, 0.08, 0.1, 0.2, 0.3] for row in arms},
        "by_category": {row["arm"]: {"Safety": {"accuracy": 0.5, "pairs": 3}} for row in arms},
        "without_model": ["qwen"],
    }
    return PageData(**(values | changes))


def test_the_page_holds_everything_that_it_promises() -> None:
    page = render(page_data())
    for part in ("Arms side by side", "Training", "The schedule", "Agreement of the teachers",
                 "Single pairs", "What ran", "no language model", "not told apart"):  # fmt: skip
        assert part in page
    for reason in REASONS[:-1]:
        assert str(escape(reason.title)) in page
    # nine annotations for every pair that is shown
    shown = page.count("<details>") - 1
    assert shown >= 3 * 8
    assert page.count("<td>gemini</td>") == shown * 3 + 1
    # nothing from elsewhere: no such link in the body, and a policy against any such load
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page.partition("<body>")[2])
    assert "default-src 'none'" in page


def test_calls_that_were_never_made_are_shown_as_such() -> None:
    rows = annotations(8)
    for row in rows:
        if (row["teacher"], row["variant"]) == ("gemini", "v3"):
            row |= {"outcome": "skipped", "category": None, "magnitude": None, "confidence": None}
    page = render(page_data(rows=rows))
    assert "not asked" in page


def test_hostile_text_stays_text() -> None:
    body = render(page_data()).partition("<body>")[2]
    assert "<script>document.title" not in body
    assert "<img" not in body
    assert "<svg onload" not in body
    assert "&lt;script&gt;" in body
    assert "{{ 7 * 7 }}" in body


def test_a_run_without_trained_arms_has_a_page() -> None:
    page = render(page_data(arms=[], curves={}, by_category={}))
    assert "No arm has been trained" in page


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=3, max_size=30))
def test_rank_correlation_equals_a_slow_reference(points: list[tuple[int, int]]) -> None:
    one, other = (np.array(side, dtype=float) for side in zip(*points, strict=True))

    def ranks(values: np.ndarray) -> list[float]:
        return [(values < v).sum() + ((values == v).sum() + 1) / 2 for v in values]

    a, b = np.array(ranks(one)), np.array(ranks(other))
    value = spearman(one, other)
    if a.std() == 0 or b.std() == 0:
        assert np.isnan(value)
    else:
        assert value == pytest.approx(((a - a.mean()) * (b - b.mean())).mean() / a.std() / b.std())


def open_in_browser(page: Path, folder: Path) -> tuple[str, str]:
    """The page's DOM after its scripts ran, and what the browser had to say."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    done = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
         "--no-first-run", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", f"--user-data-dir={folder}/profile", "--enable-logging=stderr",
         "--virtual-time-budget=10000", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return done.stdout, done.stderr


@pytest.mark.browser
def test_a_browser_draws_the_page(tmp_path: Path) -> None:
    page = tmp_path / "index.html"
    page.write_text(render(page_data()), encoding="utf-8")
    dom, said = open_in_browser(page, tmp_path)
    assert "CONSOLE" not in said, said
    charts = re.findall(r'<div id="([\w-]+)" class="plotly-graph-div[^"]*js-plotly-plot', dom)
    assert len(charts) == 9
    assert dom.count('class="main-svg"') >= 7
    title = re.search(r"<title>(.*?)</title>", dom, re.DOTALL)
    assert title is not None
    assert title[1] != "owned"
    assert "document.title='owned'" not in "".join(re.findall(r"<script>(.*?)</script>", dom))
