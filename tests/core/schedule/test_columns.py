"""The schedule's columns, exclusions, arms and bytes."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sp2dpo_ray.core.arms import parse_arm
from sp2dpo_ray.core.artifact import Provenance, open_artifact, publish, read_manifest
from sp2dpo_ray.core.schedule.build import build_schedule
from sp2dpo_ray.core.schedule.grid import ANNOTATION_SCHEMA, Panel
from sp2dpo_ray.core.schedule.mapping import BetaMap
from sp2dpo_ray.core.schedule.recipe import Recipe
from sp2dpo_ray.core.taxonomy import CATEGORIES
from sp2dpo_ray.errors import ArtifactError, ConfigError, DataError

PANEL = Panel(("qwen", "openai", "gemini"), ("v1", "v2", "v3"))
BETA_OF = BetaMap()


def annotations(num_pairs: int = 6, seed: int = 0) -> list[dict[str, Any]]:
    draw = np.random.default_rng(seed)
    return [
        {
            "prompt_id": f"id-{i}",
            "split": "train",
            "teacher": teacher,
            "variant": variant,
            "outcome": "ok",
            "category": str(CATEGORIES[draw.integers(6)]),
            "magnitude": float(draw.random()),
            "confidence": float(draw.random()),
        }
        for i, teacher, variant in itertools.product(
            range(num_pairs), PANEL.teachers, PANEL.variants
        )
    ]


def build(rows: list[dict[str, Any]]) -> Any:
    return build_schedule(pa.Table.from_pylist(rows, schema=ANNOTATION_SCHEMA), Recipe(PANEL))


def test_the_columns_are_those_of_the_paper_in_order() -> None:
    names = build(annotations()).table.column_names
    expected = ["prompt_id", "prompt_variant_count"]
    for teacher, variant in itertools.product(PANEL.teachers, PANEL.variants):
        expected += [
            f"{field}_{teacher}_{variant}"
            for field in ("category", "magnitude", "confidence", "effective_gap", "beta")
        ]
    for teacher in PANEL.teachers:
        expected += [f"category_{teacher}_ens", f"category_{teacher}_ens_tie_break",
                     f"effective_gap_{teacher}_ens", f"beta_{teacher}_ens"]  # fmt: skip
    expected += [f"beta_annotators_mean_{name}" for name in ("v1", "v2", "v3", "ens")]
    assert names == [*expected, "beta_random"]
    assert len(names) == 64


def test_values_follow_the_closed_form() -> None:
    rows = annotations()
    table = build(rows).table
    for row in table.to_pylist():
        gaps = {
            (a["teacher"], a["variant"]): a["magnitude"] * a["confidence"]
            for a in rows
            if a["prompt_id"] == row["prompt_id"]
        }
        betas = []
        for teacher in PANEL.teachers:
            middle = sorted(gaps[teacher, variant] for variant in PANEL.variants)[1]
            assert row[f"effective_gap_{teacher}_ens"] == middle
            betas.append(0.03 + 0.27 * middle)
        assert row["beta_annotators_mean_ens"] == pytest.approx(sum(betas) / 3, abs=1e-15)


def test_row_order_changes_nothing() -> None:
    rows = annotations()
    shuffled = [rows[i] for i in np.random.default_rng(1).permutation(len(rows))]
    one, other = build(rows), build(shuffled)
    assert one.table.equals(other.table)
    assert one.diagnostics.equals(other.diagnostics)


def test_incomplete_pairs_are_listed_with_their_reason() -> None:
    rows = annotations()
    rows[1] |= {"outcome": "parse_error", "category": None, "magnitude": None, "confidence": None}
    rows[9] |= {"magnitude": float("nan")}
    rows[18] |= {"confidence": 1.2}
    rows[27] |= {"category": "Tastiness"}
    del rows[36]
    made = build(rows)
    assert made.table["prompt_id"].to_pylist() == ["id-5"]
    assert {row["prompt_id"]: row["reason"] for row in made.excluded.to_pylist()} == {
        "id-0": "qwen/v2: parse_error",
        "id-1": "qwen/v1: not_a_number",
        "id-2": "qwen/v1: number_out_of_range",
        "id-3": "qwen/v1: unknown_category",
        "id-4": "qwen/v1: not_attempted",
    }


def test_of_repeated_calls_the_first_counts() -> None:
    rows = annotations(1)
    late = rows[0] | {"magnitude": 0.123}
    assert build([*rows, late]).table.equals(build(rows).table)


def test_a_foreign_teacher_is_refused() -> None:
    with pytest.raises(ArtifactError, match=r"teacher \['llama'\] is not one of \['qwen', "):
        build([annotations(1)[0] | {"teacher": "llama"}])


def test_no_pair_at_all_gives_an_empty_schedule() -> None:
    made = build([])
    assert made.table.num_rows == 0
    assert made.table.num_columns == 64


def test_the_random_control_is_drawn_by_content() -> None:
    table = build(annotations(200)).table
    beta = dict(zip(table["prompt_id"].to_pylist(), table["beta_random"].to_pylist(), strict=True))
    fewer = build(annotations(3)).table
    for name, value in zip(
        fewer["prompt_id"].to_pylist(), fewer["beta_random"].to_pylist(), strict=True
    ):
        assert beta[name] == value
    values = np.array(list(beta.values()))
    assert values.min() >= 0.03
    assert values.max() <= 0.3
    assert abs(values.mean() - 0.165) < 0.02  # 4 standard errors of 200 uniform draws
    # seed 42 is part of the artifact's meaning: these draws never change
    assert beta["id-0"] == pytest.approx(GOLDEN_RANDOM, abs=1e-15)


GOLDEN_RANDOM = 0.1485690618571312


ARMS = {
    "jmamp": "beta_annotators_mean_ens",
    "sa-openai-v2": "beta_openai_v2",
    "se-gemini": "beta_gemini_ens",
    "ma-v3": "beta_annotators_mean_v3",
    "random": "beta_random",
    "column:beta_qwen_v1": "beta_qwen_v1",
}


@pytest.mark.parametrize("name", ARMS)
def test_arms_read_their_column(name: str) -> None:
    table = build(annotations()).table
    ids = table["prompt_id"].to_pylist()[::-1]
    expected = table[ARMS[name]].to_pylist()[::-1]
    assert parse_arm(name).betas(table, ids).tolist() == expected


def test_constant_arms_need_no_schedule() -> None:
    assert parse_arm("dpo:0.1").betas(None, ["a", "b"]).tolist() == [0.1, 0.1]
    assert not parse_arm("dpo:0.1").needs_schedule
    assert parse_arm("dpo:0.1").folder == "dpo-0.1"


def test_controls_keep_what_they_control_for() -> None:
    table = build(annotations(50)).table
    ids = table["prompt_id"].to_pylist()
    real = parse_arm("jmamp").betas(table, ids)
    shuffled = parse_arm("shuffled").betas(table, ids)
    assert sorted(shuffled) == sorted(real)
    assert (shuffled != real).mean() > 0.8
    matched = parse_arm("matched-constant").betas(table, ids)
    assert matched == pytest.approx(np.full(50, real.mean()), abs=1e-15)


@pytest.mark.parametrize("name", ["dpo", "dpo:", "dpo:0", "dpo:-1", "dpo:x", "jmamp2", "", "sa-a"])
def test_unknown_arms_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="arm"):
        parse_arm(name)


@pytest.mark.parametrize("value", [float("nan"), 0.0, -0.1, float("inf"), None])
def test_an_unusable_beta_is_refused_with_the_pairs_id(value: float | None) -> None:
    table = pa.table({"prompt_id": ["good", "bad"], "b": pa.array([0.1, value], pa.float64())})
    with pytest.raises(DataError, match="pair bad: b must be a positive number"):
        parse_arm("column:b").betas(table, ["good", "bad"])
    with pytest.raises(DataError, match="pair other"):
        parse_arm("column:b").betas(table, ["other"])


def test_publishing_twice_gives_identical_bytes(tmp_path: Path) -> None:
    digests = []
    for name in ("one", "two"):
        with publish(tmp_path / name, Provenance("schedule", "k", "l", {})) as draft:
            draft.write_table("schedule.parquet", build(annotations()).table)
            draft.summary["pairs"] = 6
        digests.append((tmp_path / name / "schedule.parquet").read_bytes())
        digests.append((tmp_path / name / "manifest.json").read_bytes())
    assert digests[:2] == digests[2:]


def test_a_failed_stage_leaves_the_old_artifact(tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    provenance = Provenance("stage", "key", "lambda", {})
    with publish(folder, provenance) as draft:
        (draft.path / "a.txt").write_text("old")

    def fill_the_disk() -> None:
        with publish(folder, provenance) as draft:
            (draft.path / "a.txt").write_text("new")
            raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        fill_the_disk()
    assert (folder / "a.txt").read_text() == "old"
    open_artifact(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]


def test_a_folder_without_a_manifest_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "schedule.parquet").write_text("half")
    assert read_manifest(tmp_path) is None
    with pytest.raises(ArtifactError, match="no finished artifact"):
        open_artifact(tmp_path)


def test_an_altered_or_missing_file_is_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    with publish(folder, Provenance("stage", "key", "lambda", {})) as draft:
        (draft.path / "a.txt").write_text("original")
    (folder / "a.txt").write_text("altered!")
    with pytest.raises(ArtifactError, match=r"a\.txt: altered since it was published"):
        open_artifact(folder)
    (folder / "a.txt").unlink()
    with pytest.raises(ArtifactError, match=r"a\.txt: listed in the manifest but missing"):
        open_artifact(folder)
