"""The published schedule: what `verify` finds, what `--diff` tells, what others read."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import sp2dpo_ray
from sp2dpo_ray.core.artifact import MANIFEST, Provenance, publish
from sp2dpo_ray.core.checklist import checklist
from sp2dpo_ray.core.derived import remapped
from sp2dpo_ray.core.hashing import sha256_file
from sp2dpo_ray.core.schedule.diff import diff
from sp2dpo_ray.core.schedule.published import load_schedule
from sp2dpo_ray.core.schedule.reading import ANNOTATION_SCHEMA
from sp2dpo_ray.core.schedule.verify import verify
from sp2dpo_ray.errors import ArtifactError, DataError
from sp2dpo_ray.run import Run
from sp2dpo_ray.stages.schedule import schedule
from tests.stages import conftest

Make = Callable[..., Run]


def forged(folder: Path, name: str, change: Callable[[pa.Table], pa.Table]) -> None:
    """Change a table and make the manifest's hash fit, as somebody would who wants to cheat."""
    path = folder / name
    table = change(pq.read_table(path))
    pq.write_table(table, path)
    rehash(folder, name)


def rehash(folder: Path, name: str) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"][name] = sha256_file(folder / name)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def cell(column: str, row: int, value: Any) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        values = table[column].to_pylist()
        values[row] = value
        place = table.column_names.index(column)
        return table.set_column(place, column, pa.array(values, table[column].type))

    return change


def first_wrong(path: Path) -> str:
    with pytest.raises(ArtifactError) as found:
        list(verify(path))
    return str(found.value)


def test_a_fresh_schedule_passes_every_check(annotated: Make) -> None:
    run = annotated()
    summary = schedule(run)
    assert (summary["pairs"], summary["excluded"]) == (28, 0)
    lines = list(verify(run.path("schedule")))
    assert len(lines) == 5
    assert "28 training and 12 held-out pairs" in lines[3]
    whole = list(verify(run.folder))
    assert "every artifact was made from the ones that lie here" in whole[-1]
    assert schedule(run)["reused"] is True


@pytest.mark.parametrize(
    "mapping",
    [
        "mapping={shape: quantile, quantiles: 4, categories: {Safety: {beta_max: 0.5}}}",
        "mapping={shape: logistic, steepness: 9, gate: {low: 0.2, high: 0.4}}",
        "ensemble.estimators=[{name: mine, damping: exp, mapping: {shape: power, exponent: 2}}]",
        "ensemble.teacher_weights={alba: 1, bruno: 0.25}",
    ],
)
def test_schedules_of_other_recipes_pass_too(annotated: Make, mapping: str) -> None:
    run = annotated(mapping)
    schedule(run)
    assert len(list(verify(run.path("schedule")))) == 5


def test_verify_and_arms_fit_what_the_schedule_was_fitted_on(
    annotated: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A predictor's pairs have no part in weights, though the table's columns do not tell them."""

    whole = conftest.made_up

    def half_predicted(run: Run, seed: int) -> pa.Table:
        rows = whole(run, seed).to_pylist()
        pairs = itertools.groupby(rows, key=lambda row: row["prompt_id"])
        for number, (_, calls) in enumerate(pairs):
            if number % 2:
                first, *others = calls
                for row in (first, *others):
                    row |= {name: first[name] for name in ("category", "magnitude", "confidence")}
                    row["outcome"] = "predicted"
        return pa.Table.from_pylist(rows, schema=ANNOTATION_SCHEMA)

    monkeypatch.setattr(conftest, "made_up", half_predicted)
    run = annotated()
    schedule(run)
    figures = json.loads(run.path("schedule", "diagnostics.json").read_text())
    assert 0 < figures["predicted"] < figures["pairs"]
    assert len(list(verify(run.path("schedule")))) == 5
    table = load_schedule(run.path("schedule"))
    recipe = run.config.recipe
    (estimator,) = (row for row in recipe.estimators if row.name == "weighted_teachers")
    again = remapped(table, table, recipe, (("estimator", estimator.name),))
    np.testing.assert_allclose(again.betas, table[estimator.column].to_numpy(), atol=1e-12)


def test_verify_says_the_first_thing_that_is_wrong(annotated: Make) -> None:
    run = annotated()
    schedule(run)
    folder = run.path("schedule")
    beta = load_schedule(folder)["beta_annotators_mean_ens"][3].as_py()
    name = load_schedule(folder)["prompt_id"][3].as_py()
    original = {path.name: path.read_bytes() for path in folder.iterdir()}

    def check(message: str) -> None:
        assert message in first_wrong(folder), first_wrong(folder)
        for file, content in original.items():
            (folder / file).write_bytes(content)

    (folder / "schedule.csv").write_bytes(original["schedule.csv"] + b"\n")
    check("schedule.csv: altered since it was published")
    (folder / "excluded.parquet").unlink()
    check("excluded.parquet: listed in the manifest but missing")
    # from here on the hashes fit
    forged(folder, "schedule.parquet", cell("beta_annotators_mean_ens", 3, beta + 0.001))
    check(f"pair {name}: beta_annotators_mean_ens is {beta + 0.001!r}, but its annotations give")
    forged(folder, "schedule.parquet", cell("magnitude_alba_v2", 5, 1.5))
    check("magnitude_alba_v2 is 1.5, it must lie in [0, 1]")
    forged(folder, "schedule.parquet", cell("confidence_bruno_v1", 5, None))
    check("confidence_bruno_v1 is nan, it must lie in [0, 1], or be empty where the category is")
    forged(folder, "schedule.parquet", cell("category_alba_v1", 0, "Tastiness"))
    check("category_alba_v1 is 'Tastiness', none of the six")
    forged(folder, "schedule.parquet", cell("category_alba_ens", 0, None))
    check("category_alba_ens is None, but its annotations give")
    forged(folder, "schedule.parquet", cell("beta_random", 0, 0.1))
    check("beta_random is 0.1, but its annotations give")
    forged(folder, "schedule.parquet", lambda t: t.rename_columns(["id", *t.column_names[1:]]))
    check("column 0 is 'id', it must be 'prompt_id'")
    forged(folder, "schedule.parquet", lambda t: t.slice(0, 27))
    assert first_wrong(folder)
    for file, content in original.items():
        (folder / file).write_bytes(content)
    forged(folder, "schedule.parquet", lambda t: t.take(list(range(27, -1, -1))))
    check("ids must rise, each once")
    forged(folder, "diagnostics.parquet", cell("beta_huber_teachers", 2, 0.2))
    check("beta_huber_teachers is 0.2, but its annotations give")
    forged(folder, "eval_schedule.parquet", cell("beta_alba_v1", 2, 0.2))
    check("eval_schedule.parquet: pair")
    forged(folder, "excluded.parquet", lambda _: pa.table({"prompt_id": [name], "reason": ["x"]}))
    check(f"excluded.parquet: pair {name} is in the schedule as well")
    (folder / "schedule.csv").write_bytes(original["schedule.csv"].replace(b"0.", b"0.1", 1))
    rehash(folder, "schedule.csv")
    check("schedule.csv: pair")
    manifest = json.loads(original[MANIFEST])
    manifest["schema_version"] = 1
    (folder / MANIFEST).write_text(json.dumps(manifest))
    check("schedule of schema version 1, made by release")
    manifest = json.loads(original[MANIFEST])
    manifest["settings"]["recipe"]["mapping"]["beta_max"] = 0.4
    (folder / MANIFEST).write_text(json.dumps(manifest))
    check("but its annotations give")


def test_a_schedule_of_other_annotations_is_noticed(annotated: Make) -> None:
    schedule(annotated())
    run = annotated(seed=1)
    assert "made from another annotate than the one that lies here" in first_wrong(run.folder)
    assert "no finished artifact" in first_wrong(run.path("nowhere"))


def test_a_reference_of_earlier_pairs_is_told_and_harms_nothing(annotated: Make) -> None:
    """Each lies in a folder of its own; and what was left half done is no artifact."""
    run = annotated()
    schedule(run)
    folder = run.path("reference", "0123456789abcdef")
    made = Provenance("reference", "k", run.config.lambda_id, {"prepare": "of earlier pairs"})
    with publish(folder, made):
        pass
    shutil.copytree(folder, folder.with_name(".fedcba9876543210.partial"))
    lines = list(verify(run.folder))
    assert f"{folder}: of another prepare than the one that lies here; nobody reads it" in lines
    assert not any(".partial" in line for line in lines)


def test_a_schedule_of_another_release_is_made_anew(annotated: Make) -> None:
    run = annotated()
    schedule(run)
    path = run.path("schedule", MANIFEST)
    old = json.loads(path.read_text()) | {"schema_version": 1}
    path.write_text(json.dumps(old))
    assert schedule(run)["reused"] is False
    assert len(list(verify(run.path("schedule")))) == 5


def test_publishing_twice_gives_the_same_bytes(annotated: Make, tmp_path: Path) -> None:
    run = annotated()
    schedule(run)
    first = {path.name: path.read_bytes() for path in run.path("schedule").iterdir()}
    run.path("schedule", MANIFEST).unlink()
    schedule(run)
    assert {path.name: path.read_bytes() for path in run.path("schedule").iterdir()} == first


def test_other_settings_make_another_schedule_and_diff_tells_them(
    annotated: Make, tmp_path: Path
) -> None:
    one = annotated()
    schedule(one)
    two = annotated("mapping.beta_max=0.5", "run.name=other", "data.limit=38", seed=1)
    schedule(two)
    found = diff(one.folder, two.path("schedule"))
    assert found["pairs"]["both"] + found["pairs"]["only_first"] == 28
    assert found["settings"]["recipe.mapping.beta_max"] == [0.3, 0.5]
    assert found["beta"]["mean_second"] > found["beta"]["mean_first"]
    here, there = load_schedule(one.folder), load_schedule(two.folder)
    ids = [i for i in here["prompt_id"].to_pylist() if i in set(there["prompt_id"].to_pylist())]
    betas = [
        {row["prompt_id"]: row["beta_annotators_mean_ens"] for row in table.to_pylist()}
        for table in (here, there)
    ]
    moves = {name: abs(betas[1][name] - betas[0][name]) for name in ids}
    assert found["beta"]["changed"] == sum(move > 0 for move in moves.values())
    assert found["beta"]["largest_move"] == max(moves.values())
    assert found["largest"][0]["prompt_id"] == max(moves, key=lambda name: moves[name])
    assert "magnitude_alba_v1" in found["columns"]  # other annotations
    same = diff(one.folder, one.folder)
    assert same["same_files"]
    assert [same[name] for name in ("columns", "settings", "largest")] == [{}, {}, []]


def test_schedules_without_a_common_pair_cannot_be_compared(
    annotated: Make, tmp_path: Path
) -> None:
    one = annotated()
    schedule(one)
    rows = [{"prompt_id": f"x{i}", "prompt": f"q{i}", "chosen": "a", "rejected": "b"}
            for i in range(9)]  # fmt: skip
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    two = annotated(f"data.source={tmp_path}/x.jsonl", "run.name=other")
    schedule(two)
    with pytest.raises(ArtifactError, match="no pair in common"):
        diff(one.folder, two.folder)


def test_load_schedule_is_all_that_others_need(annotated: Make) -> None:
    run = annotated()
    schedule(run)
    table = sp2dpo_ray.load_schedule(run.folder)
    assert table.column_names[0] == "prompt_id"
    assert table["prompt_id"].to_pylist() == sorted(table["prompt_id"].to_pylist())
    assert {"beta_annotators_mean_ens", "category", "beta_debiased"} <= set(table.column_names)
    assert len(table.column_names) == len(set(table.column_names))
    few = load_schedule(run.path("schedule"), ["beta_debiased", "beta_random"], split="eval")
    assert few.column_names == ["prompt_id", "beta_debiased", "beta_random"]
    assert few.num_rows == 12
    with pytest.raises(DataError, match=r"no column \['beta'\]"):
        load_schedule(run.folder, ["beta"])
    with pytest.raises(DataError, match="split must be one of"):
        load_schedule(run.folder, split="test")
    with pytest.raises(ArtifactError, match="holds prepare, not a schedule"):
        load_schedule(run.path("pairs"))
    with pytest.raises(AttributeError, match="no attribute 'load_scheduel'"):
        sp2dpo_ray.load_scheduel  # noqa: B018
    run.path("schedule", "schedule.csv").write_text("altered")
    with pytest.raises(ArtifactError, match="altered since it was published"):
        load_schedule(run.folder)


def test_the_card_says_what_the_artifact_holds(annotated: Make) -> None:
    run = annotated("mapping={gate: {low: 0.1, high: 0.2}, categories: {Style: {beta_max: 0.1}}}")
    schedule(run)
    text = run.path("schedule", "card.md").read_text()
    figures = json.loads(run.path("schedule", "diagnostics.json").read_text())
    assert "# Schedule of temperatures for 28 preference pairs" in text
    assert f"mean {figures['beta']['mean']:.4f}" in text
    assert "gated by confidence from 0.1 to 0.2" in text
    assert "Style [0.03, 0.1]" in text
    assert "fixed rules" in text  # the teachers are no models, and it says so
    for row in figures["estimators"].values():
        assert f"`{row['column']}`" in text
    assert str(run.folder) not in text
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.count("|") in (9, 8)


def test_a_run_without_any_whole_pair_says_why(annotated: Make) -> None:
    run = annotated()
    path = run.path("annotations", "annotations.parquet")
    table = pq.read_table(path)
    teacher = np.array(table["teacher"].to_pylist())
    outcome = np.where(teacher == "bruno", "refusal", "ok")
    broken = table.set_column(5, "outcome", pa.array(outcome))
    pq.write_table(broken, path)
    rehash(run.path("annotations"), "annotations.parquet")
    with pytest.raises(DataError, match=r"bruno: refusal': 28.*The first: pair .*bruno/v1"):
        schedule(run)


def test_the_checklist_points_to_what_is_there(annotated: Make, tmp_path: Path) -> None:
    run = annotated()
    before = {line.demand: line for line in checklist(run.folder)}
    assert before["the schedule of betas"].missing == "no schedule; run: sp2dpo schedule"
    assert before["data set and its revision"].where
    schedule(run)
    after = {line.demand: line for line in checklist(run.folder)}
    for demand in ("the schedule of betas", "distribution by category",
                   "the exact estimator, tie-breaking, damping"):  # fmt: skip
        assert after[demand].where
        file = run.path(after[demand].where.split(",")[0].split(":")[0])
        assert file.is_file(), file
    assert after["raw outputs with failures and timeouts"].where is None  # no journal here
    with pytest.raises(ArtifactError, match="no run folder"):
        checklist(tmp_path)
