"""Annotations as arrays: bad input is named, order and chunks change nothing, first come counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sp2dpo_ray.core.schedule import reading
from sp2dpo_ray.core.schedule import recipe as recipe_module
from sp2dpo_ray.core.schedule.build import build_schedule, write_schedule
from sp2dpo_ray.core.schedule.grid import Panel
from sp2dpo_ray.core.schedule.mapping import BetaMap
from sp2dpo_ray.core.schedule.reading import ANNOTATION_SCHEMA, batches_of, read_grids
from sp2dpo_ray.core.schedule.recipe import Recipe
from sp2dpo_ray.errors import ArtifactError
from tests.core.schedule.test_columns import PANEL, annotations

Row = dict[str, Any]


def table_of(rows: list[Row]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=ANNOTATION_SCHEMA)


def build(rows: list[Row], recipe: Recipe | None = None) -> Any:
    return build_schedule(table_of(rows), recipe or Recipe(PANEL))


def shuffled(rows: list[Row], seed: int = 1) -> list[Row]:
    return [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))]


RECIPES = {
    "linear": Recipe(PANEL),
    "everything": Recipe(
        PANEL,
        BetaMap(
            shape="quantile", quantiles=4, blend=0.7, gate=(0.1, 0.6),
            categories=(("Safety", 0.1, 0.5), ("Style", 0.01, 0.1)),
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_permuting_rows_teachers_or_variants_changes_nothing(name: str) -> None:
    rows, recipe = annotations(60), RECIPES[name]
    one = build(rows, recipe)
    rowwise = build(shuffled(rows), recipe)
    assert rowwise.table.equals(one.table)
    assert rowwise.diagnostics.equals(one.diagnostics)
    assert rowwise.quality == one.quality
    turned = Panel(PANEL.teachers[::-1], ("v2", "v3", "v1"))
    other = build(rows, Recipe(turned, recipe.mapping))
    for part in ("table", "diagnostics"):
        here, there = getattr(one, part), getattr(other, part)
        assert sorted(here.column_names) == sorted(there.column_names)
        for column in here.column_names:
            assert here[column].equals(there[column]), column


@pytest.mark.parametrize("name", RECIPES)
def test_pieces_are_the_whole(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small row groups that cut pairs apart, and small chunks of pairs: the same bytes."""
    rows = shuffled(annotations(60)) + [row | {"split": "eval"} for row in annotations(5, seed=7)]
    path = tmp_path / "annotations.parquet"
    digests = []
    for group, pairs in ((1 << 20, 1 << 15), (7, 1 << 15), (100, 13)):
        pq.write_table(table_of(rows), path, row_group_size=group)
        monkeypatch.setattr(recipe_module, "PAIRS_AT_ONCE", pairs)
        monkeypatch.setattr("sp2dpo_ray.core.schedule.build.PAIRS_AT_ONCE", pairs)
        folder = tmp_path / f"{group}-{pairs}"
        folder.mkdir()
        write_schedule(path, RECIPES[name], folder)
        digests.append(
            {
                file.name: pq.read_table(file) if file.suffix == ".parquet" else file.read_text()
                for file in folder.iterdir()
            }
        )
    assert digests[0] == digests[1] == digests[2]
    assert digests[0]["eval_schedule.parquet"].num_rows == 5
    made = build(rows, RECIPES[name])
    assert digests[0]["schedule.parquet"].equals(made.table)
    assert digests[0]["diagnostics.parquet"].equals(made.diagnostics)


def test_text_columns_are_never_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "annotations.parquet"
    pq.write_table(table_of(annotations(3)), path)
    seen: list[str] = []
    read = pq.ParquetFile.read_row_group

    def watched(self: Any, group: int, columns: list[str]) -> Any:
        seen.extend(columns)
        return read(self, group, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", watched)
    read_grids(batches_of(path), PANEL, ("train", "eval"))
    assert seen
    assert not {"text", "key", "detail"} & set(seen)


def test_each_fault_is_named_and_counted() -> None:
    rows = annotations(8)
    call = {(row["prompt_id"], row["teacher"], row["variant"]): row for row in rows}
    call["id-0", "qwen", "v1"]["magnitude"] = float("nan")
    call["id-1", "qwen", "v2"]["confidence"] = 1.0000001
    call["id-2", "openai", "v1"]["magnitude"] = -1e-9
    call["id-3", "openai", "v3"]["category"] = "Tastiness"
    call["id-4", "gemini", "v1"] |= {"outcome": "filtered", "category": None, "magnitude": None}
    rows.remove(call["id-5", "gemini", "v2"])
    call["id-6", "gemini", "v3"]["magnitude"] = None
    made = build(rows)
    assert made.table["prompt_id"].to_pylist() == ["id-7"]
    assert {row["prompt_id"]: row["reason"] for row in made.excluded.to_pylist()} == {
        "id-0": "qwen/v1: not_a_number",
        "id-1": "qwen/v2: number_out_of_range",
        "id-2": "openai/v1: number_out_of_range",
        "id-3": "openai/v3: unknown_category",
        "id-4": "gemini/v1: filtered",
        "id-5": "gemini/v2: not_attempted",
        "id-6": "gemini/v3: not_a_number",
    }
    assert made.quality["exclusions"] == {
        "qwen: not_a_number": 1,
        "qwen: number_out_of_range": 1,
        "openai: number_out_of_range": 1,
        "openai: unknown_category": 1,
        "gemini: filtered": 1,
        "gemini: not_a_number": 1,
        "gemini: not_attempted": 1,
    }
    assert made.quality["coverage"]["gemini"]["annotated_pairs"] == 5 / 8
    assert made.quality["coverage"]["gemini"]["outcomes"] == {
        "ok": 22, "filtered": 1, "not_attempted": 1
    }  # fmt: skip


def test_a_teacher_that_answered_for_half_of_the_pairs() -> None:
    rows = [
        row for row in annotations(10)
        if row["teacher"] != "gemini" or int(row["prompt_id"][3:]) % 2
    ]  # fmt: skip
    made = build(rows)
    assert made.table.num_rows == 5
    assert made.quality["excluded"] == 5
    assert made.quality["exclusions"] == {"gemini: not_attempted": 5}
    assert made.quality["coverage"]["gemini"]["annotated_pairs"] == 0.5


def test_of_repeated_calls_the_first_recorded_wins_and_they_are_counted() -> None:
    rows = annotations(4)
    repeats = [rows[0] | {"magnitude": 0.123}, rows[1], rows[2] | {"category": "Style"}]
    repeats[2]["category"] = "Style" if rows[2]["category"] != "Style" else "Safety"
    made = build([*rows, *repeats, rows[0] | {"outcome": "parse_error"}])
    assert made.table.equals(build(rows).table)
    assert (made.quality["repeated_calls"], made.quality["conflicting_calls"]) == (4, 3)
    # across batches as within one
    assert build(rows).quality["repeated_calls"] == 0


def test_repeats_in_other_batches_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "ROWS_AT_ONCE", 5)
    rows = annotations(4)
    late = [rows[0] | {"magnitude": 0.123}, rows[17]]
    made = build([*rows, *late])
    assert made.table.equals(build(rows).table)
    assert (made.quality["repeated_calls"], made.quality["conflicting_calls"]) == (2, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variant": "v9"}, r"variant \['v9'\] is not one of"),
        ({"outcome": "great"}, r"outcome \['great'\] is not one of"),
        ({"split": "test"}, r"split \['test'\] is not one of"),
        ({"teacher": None}, r"teacher \['None'\] is not one of"),
    ],
)
def test_foreign_names_are_refused(change: Row, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        build([*annotations(2), annotations(1)[0] | change])


def test_a_file_without_a_column_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(table_of(annotations(1)).drop_columns(["confidence"]), path)
    with pytest.raises(ArtifactError, match=r"columns \['confidence'\] are missing"):
        batches_of(path)


def test_one_pair_and_no_pair() -> None:
    one = build(annotations(1))
    assert one.table.num_rows == 1
    assert one.quality["agreement"]["teachers"]["spearman"]["qwen ~ openai"] is None
    none = build([])
    assert none.table.num_rows == 0
    assert none.table.schema == one.table.schema
    assert none.quality["pairs"] == 0


def test_one_teacher_and_one_prompt() -> None:
    panel = Panel(("qwen",), ("v1",))
    rows = [r for r in annotations(5) if (r["teacher"], r["variant"]) == ("qwen", "v1")]
    made = build(rows, Recipe(panel))
    beta = made.table["beta_qwen_v1"]
    for name in ("beta_qwen_ens", "beta_annotators_mean_v1", "beta_annotators_mean_ens"):
        assert made.table[name].equals(beta)
    assert not made.diagnostics["teacher_std"].to_numpy().any()


def test_the_same_id_may_stand_in_both_splits() -> None:
    rows = annotations(3)
    read = read_grids(
        batches_of(table_of(rows + [row | {"split": "eval"} for row in annotations(2, seed=9)])),
        PANEL, ("train", "eval"),
    )  # fmt: skip
    assert [len(read.grids[name]) for name in ("train", "eval")] == [3, 2]
    assert read.repeated == 0
    assert (read.grids["train"].magnitude[:2] != read.grids["eval"].magnitude).all()
