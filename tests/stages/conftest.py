"""A run with prepared pairs and annotations made up for them: no Ray, no teacher."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sp2dpo_ray.config import load_config
from sp2dpo_ray.core.artifact import publish
from sp2dpo_ray.core.files import ANNOTATIONS
from sp2dpo_ray.core.schedule.reading import ANNOTATION_SCHEMA
from sp2dpo_ray.core.taxonomy import CATEGORIES
from sp2dpo_ray.run import Run
from sp2dpo_ray.stages.prepare import prepare


def made_up(run: Run, seed: int) -> pa.Table:
    """A row for each call: gaps that teachers mostly share, categories that they mostly do."""
    draw = np.random.default_rng(seed)
    rows = []
    for split in ("train", "eval"):
        for prompt_id in pq.read_table(run.pairs_file(split))["prompt_id"].to_pylist():
            gap, category = draw.random(), draw.integers(6)
            for _, _, teacher, variant in run.config.panel.calls:
                own = draw.integers(6) if draw.random() < 0.2 else category
                rows.append(
                    {
                        "prompt_id": prompt_id, "split": split, "teacher": teacher,
                        "variant": variant, "outcome": "ok", "category": str(CATEGORIES[own]),
                        "magnitude": round(float(np.clip(gap + draw.normal(0, 0.1), 0, 1)), 2),
                        "confidence": round(float(draw.random()), 2),
                        "served_model": f"{teacher}-1",
                    }
                )  # fmt: skip
    return pa.Table.from_pylist(rows, schema=ANNOTATION_SCHEMA)


@pytest.fixture
def annotated(demo_config: Path) -> Callable[..., Run]:
    """annotated(*overrides, seed=0): a run with pairs and annotations."""

    def make(*overrides: str, seed: int = 0) -> Run:
        run = Run(load_config(str(demo_config), overrides))
        run.write_lambda()
        prepare(run)
        provenance = run.provenance("annotate", {"seed": seed}, {"prepare": run.path("pairs")})
        with publish(run.path("annotations"), provenance) as draft:
            table = made_up(run, seed)
            pq.write_table(table, draft.path / ANNOTATIONS)
            draft.summary |= {"prompts": "0" * 64, "outcomes": {"ok": table.num_rows}}
        return run

    return make
