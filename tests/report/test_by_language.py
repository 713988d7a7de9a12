"""Agreement by language: a language whose teachers agree, one whose teachers do not."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from sp2dpo_ray.core.schedule.build import build_schedule
from sp2dpo_ray.core.schedule.reading import ANNOTATION_SCHEMA
from sp2dpo_ray.core.schedule.recipe import Recipe
from sp2dpo_ray.report.by_language import by_language
from tests.core.schedule.test_columns import PANEL, annotations


def test_teachers_that_agree_in_one_language_alone() -> None:
    rows = annotations(40)
    draw = np.random.default_rng(0)
    said = {f"id-{i}": (float(draw.random()), float(draw.random())) for i in range(40)}
    for row in rows:
        if int(row["prompt_id"].removeprefix("id-")) < 20:  # all calls alike
            row["magnitude"], row["confidence"] = said[row["prompt_id"]]
            row["category"] = "Style" if said[row["prompt_id"]][0] < 0.5 else "Safety"
        if row["prompt_id"] == "id-39":
            row["outcome"] = "predicted"
    made = build_schedule(pa.Table.from_pylist(rows, schema=ANNOTATION_SCHEMA), Recipe(PANEL))
    whole = made.table
    for name in made.diagnostics.column_names[1:]:
        whole = whole.append_column(name, made.diagnostics[name])
    languages = {f"id-{i}": "en" if i < 20 else "de" if i < 37 else "fr" for i in range(40)}
    english, german, french = by_language(whole, PANEL, languages)
    assert [row["language"] for row in (english, german, french)] == ["en", "de", "fr"]
    assert [row["pairs"] for row in (english, german, french)] == [20, 17, 2]
    assert english["spearman"] == pytest.approx(1)
    assert english["alpha"] == pytest.approx(1)
    assert english["teacher_std"] == pytest.approx(0)
    assert german["spearman"] < 0.5
    assert german["alpha"] < 0.5
    assert french["spearman"] is None
