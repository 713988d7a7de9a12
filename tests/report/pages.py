"""Pages for the tests: made of a built schedule, every text of theirs hostile."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sp2dpo_ray.config.panel import RULES
from sp2dpo_ray.core.pairs import Pair
from sp2dpo_ray.core.schedule.audit import audit_list, doubted
from sp2dpo_ray.core.schedule.build import build_schedule
from sp2dpo_ray.core.schedule.reading import ANNOTATION_SCHEMA
from sp2dpo_ray.core.schedule.recipe import Recipe
from sp2dpo_ray.evaluate.compare import compare_arms
from sp2dpo_ray.report.costs import CostRow
from sp2dpo_ray.report.page import PageData, write_page
from tests.core.schedule.test_columns import PANEL, annotations

HOSTILE = (
    "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    "{{ 7 * 7 }}<svg onload=alert(1)> \u202e & \" '"
)


def page_data(
    rows: list[dict[str, Any]] | None = None, *, pairs: int = 8, **changes: Any
) -> PageData:
    """A page of some pairs whose every text is hostile."""
    calls = pa.Table.from_pylist(rows or annotations(pairs), schema=ANNOTATION_SCHEMA)
    made = build_schedule(calls, Recipe(PANEL))
    whole = made.table
    for name in made.diagnostics.column_names[1:]:
        whole = whole.append_column(name, made.diagnostics[name])
    ids = [f"e{i}" for i in range(20)]
    draw = np.random.default_rng(0)
    scores = compare_arms({name: (ids, draw.normal(size=20)) for name in ("dpo:0.1", "jmamp")},
                          "dpo:0.1")  # fmt: skip
    arms = [asdict(score) | {"title": HOSTILE, "seconds": 1.0, "tokens_per_second": 2.0}
            for score in scores]  # fmt: skip
    step = {"step": 1, "loss": 0.6, "logratio/margins": 0.1}
    ids = made.table["prompt_id"].to_pylist()
    listed = audit_list(whole, PANEL, each=3, sample=4, seed=0)
    values: dict[str, Any] = {
        "lambda_record": {
            "lambda_id": "abc",
            "config": {
                "run": {"name": HOSTILE},
                "data": {"source": f"/data/{HOSTILE} ü.jsonl"},
                "student": {"model": HOSTILE},
            },
        },
        "stages": {HOSTILE: {"pairs": 8, "seconds": 1.25}},
        "panel": PANEL,
        "schedule": whole,
        "figures": made.quality,
        "pairs": {
            name: Pair(name, [{"role": "user", "content": HOSTILE}], HOSTILE, HOSTILE)
            for name in ids
        },
        "digest": "d" * 64,
        "score_gap": np.linspace(-1.0, 3.0, len(ids)),
        "listed": dict(zip(*listed.select(["prompt_id", "why"]).to_pydict().values(), strict=True)),
        "flipped": doubted(whole, PANEL),
        "prompt_languages": dict.fromkeys(ids, "en"),
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
        "without_model": {"qwen": RULES},
    }
    return PageData(**(values | changes))


def written(data: PageData, folder: Path) -> str:
    """The page, written into the folder."""
    write_page(data, folder)
    return (folder / "index.html").read_text(encoding="utf-8")
