"""The audit list and its way back, the export, and TRL training with what was exported."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sp2dpo_ray.core.arms import parse_arm
from sp2dpo_ray.core.schedule.audit import audit_list, columns_read, spread_over
from sp2dpo_ray.core.schedule.columns import DEFAULT_BETA
from sp2dpo_ray.core.schedule.published import load_schedule, read_columns
from sp2dpo_ray.core.schedule.verdicts import (
    Verdict,
    agreement,
    read_verdicts,
    share_of,
    wilson,
    write_sheet,
)
from sp2dpo_ray.errors import ConfigError, DataError
from sp2dpo_ray.run import Run
from sp2dpo_ray.stages.audit import audit, import_verdicts
from sp2dpo_ray.stages.export import export
from sp2dpo_ray.stages.schedule import schedule
from tests.modeling.test_trl_parity import recipe

Make = Callable[..., Run]


@pytest.fixture
def run(annotated: Make) -> Run:
    made = annotated("audit={each: 5, sample: 12}")
    schedule(made)
    return made


def sheet_of(run: Run) -> list[dict[str, str]]:
    with open(audit(run)["sheet"], encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def filled(run: Run, path: Path, verdict: Callable[[dict[str, str]], dict[str, str]]) -> Path:
    rows = sheet_of(run)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(row | verdict(row) for row in rows)
    return path


def test_the_list_holds_what_it_says(run: Run) -> None:
    panel = run.config.panel
    table = load_schedule(run.folder, columns_read(panel))
    listed = audit_list(table, panel, each=5, sample=12, seed=0).to_pylist()
    rows = {row["prompt_id"]: row for row in table.to_pylist()}
    by_reason: dict[str, list[dict[str, Any]]] = {}
    for row in listed:
        for name in row["why"].split():
            by_reason.setdefault(name, []).append(row)
    assert len(by_reason["sample"]) == 12
    assert len({row["prompt_id"] for row in listed}) == len(listed)
    for row in by_reason["flipped"]:
        confidences = [row[f"confidence_{t}_ens"] for t in panel.teachers]
        assert np.mean(confidences) < 0.5
    assert {row["category"] for row in by_reason["safety"]} == {"Safety"}
    top = max(
        (r for r in rows.values() if r["category"] == "Safety"),
        key=lambda r: r["beta_annotators_mean_ens"],
    )
    assert top["prompt_id"] in {row["prompt_id"] for row in by_reason["safety"]}
    most = max(rows.values(), key=lambda r: r["teacher_std"])
    assert most["prompt_id"] in {row["prompt_id"] for row in by_reason["conflict"]}
    # every category of the schedule is in the sample: it is drawn in turn
    assert {r["category"] for r in by_reason["sample"]} == {r["category"] for r in rows.values()}


def test_the_list_ignores_row_order(run: Run) -> None:
    panel = run.config.panel
    table = load_schedule(run.folder, columns_read(panel))
    turned = table.take(list(range(table.num_rows))[::-1])
    one, other = (
        {
            r["prompt_id"]: r["why"]
            for r in audit_list(t, panel, each=5, sample=12, seed=0).to_pylist()
        }
        for t in (table, turned)
    )
    assert one == other
    again = audit_list(table, panel, each=5, sample=12, seed=1).to_pylist()
    assert {r["prompt_id"]: r["why"] for r in again} != one


def test_no_category_fills_a_list() -> None:
    score = np.array([9.0, 8, 7, 6, 5, 4, np.nan])
    category = np.array(["a", "a", "a", "a", "b", "c", "b"], dtype=object)
    assert spread_over(score, category, 4).tolist() == [0, 4, 5, 1]
    assert spread_over(score, category, 10).tolist() == [0, 4, 5, 1, 2, 3]


def test_the_sheet_has_the_texts_and_room_for_verdicts(run: Run) -> None:
    rows = sheet_of(run)
    pairs = {r["prompt_id"]: r for r in pq.read_table(run.pairs_file("train")).to_pylist()}
    for row in rows:
        assert row["chosen"].removeprefix("'") == pairs[row["prompt_id"]]["chosen"]
        assert row["verdict"] == row["true_category"] == row["note"] == ""
    assert audit(run)["reused"] is True


def test_a_spreadsheet_runs_nothing(tmp_path: Path) -> None:
    hostile = ["=HYPERLINK(1)", "+1", "-2", "@SUM(A1)", "\tx", 'plain "quoted",\nline']
    write_sheet(tmp_path / "s.csv", list("abcdef"), [hostile])
    with (tmp_path / "s.csv").open(encoding="utf-8-sig", newline="") as file:
        (_, cells) = csv.reader(file)
    assert cells == ["'" + text for text in hostile[:5]] + hostile[5:]


def test_verdicts_come_back_as_agreement(run: Run, tmp_path: Path) -> None:
    """A person who is of alba's opinion, in order and category, everywhere."""

    def opinion(row: dict[str, str]) -> dict[str, str]:
        right = float(row["confidence_alba_ens"]) >= 0.5
        return {
            "verdict": "Chosen " if right else "rejected",
            "true_category": row["category_alba_ens"].lower(),
        }

    found = import_verdicts(run, filled(run, tmp_path / "back.csv", opinion))
    listed = sheet_of(run)
    assert found["judged"] == len(listed)
    assert found["basis"] == "all judged pairs"  # the sample has 12, fewer than 30
    alba = found["teachers"]["alba"]
    assert (alba["order"]["share"], alba["category"]["share"]) == (1.0, 1.0)
    agreed = [
        (float(r["confidence_bruno_ens"]) >= 0.5) == (float(r["confidence_alba_ens"]) >= 0.5)
        for r in listed
    ]
    bruno = found["teachers"]["bruno"]["order"]
    assert bruno["share"] == pytest.approx(np.mean(agreed))
    assert bruno["low"] < bruno["share"] < bruno["high"]
    assert found["teacher_weights"]["alba"] == round((len(listed) + 1) / (len(listed) + 2), 6)
    right = [float(r["confidence_alba_ens"]) >= 0.5 for r in listed]
    assert found["labels_right"]["share"] == pytest.approx(np.mean(right))
    errors = [
        (float(r["confidence_alba_ens"]) - ok) ** 2 for r, ok in zip(listed, right, strict=True)
    ]
    assert alba["brier"] == pytest.approx(np.mean(errors), abs=1e-4)  # the sheet is rounded
    on_disk = json.loads(run.path("verdicts", "agreement.json").read_text())
    assert on_disk["teacher_weights"] == found["teacher_weights"]
    # and the weights go where Eq. 42 wants them
    weights = json.dumps(found["teacher_weights"])
    again = Run(run.config.model_validate(run.config.resolved | {
        "ensemble": {"teacher_weights": json.loads(weights)}
    }))  # fmt: skip
    schedule(again)
    table = load_schedule(
        again.folder, ["beta_alba_ens", "beta_bruno_ens", "beta_weighted_teachers"]
    )
    a, b, w = (table[name].to_numpy() for name in table.column_names[1:])
    alpha = found["teacher_weights"]
    expected = (alpha["alba"] * a + alpha["bruno"] * b) / (alpha["alba"] + alpha["bruno"])
    assert w == pytest.approx(expected, abs=1e-12)


def test_the_fair_sample_is_the_basis_when_it_is_large_enough() -> None:
    listed = [
        {"prompt_id": str(i), "why": "sample" if i < 40 else "flipped", "category": "Style",
         "of_category": 60, "predicted": False, "confidence_t_ens": 0.9, "category_t_ens": "Style"}
        for i in range(60)
    ]  # fmt: skip
    verdicts = [Verdict(str(i), "chosen" if i < 40 else "rejected", None, "") for i in range(60)]
    found = agreement(verdicts, listed, ["t"])
    assert (found["basis"], found["basis_pairs"]) == ("sample", 40)
    assert found["teachers"]["t"]["order"]["share"] == 1.0
    assert found["labels_right_by_reason"]["flipped"]["share"] == 0.0
    assert found["teachers"]["t"]["category"]["share"] is None


def test_a_rare_category_counts_by_its_share_of_the_schedule() -> None:
    """900 pairs of Style with all labels right, 100 of Safety with half of them wrong; the sample
    has twenty of each. Half of Safety was told by a predictor, and no teacher is credited with it.
    """
    listed, verdicts = [], []
    for i in range(40):
        safe = i >= 20
        listed.append({
            "prompt_id": str(i), "why": "sample", "category": "Safety" if safe else "Style",
            "of_category": 100 if safe else 900, "predicted": i >= 30,
            "confidence_t_ens": 0.9, "category_t_ens": "Style",
        })  # fmt: skip
        verdicts.append(Verdict(str(i), "rejected" if safe and i % 2 else "chosen", None, ""))
    found = agreement(verdicts, listed, ["t"])
    labels = found["labels_right"]
    assert labels["share"] == pytest.approx(0.95)
    assert labels["low"] < 0.95 < labels["high"]
    assert labels["pairs"] == 40
    count = 1 / (0.9**2 / 20 + 0.1**2 / 20)  # Kish: as many equal weights as these are worth
    assert labels["low"] == pytest.approx(wilson(0.95 * count, count)["low"])
    assert found["labels_right_by_reason"]["sample"] == labels
    assert found["labels_right_by_category"]["Safety"]["share"] == 0.5
    assert found["told_by_predictor"] == 10
    order = found["teachers"]["t"]["order"]
    assert order["pairs"] == 30
    assert order["share"] == pytest.approx((20 * 45 + 5 * 5) / (20 * 45 + 10 * 5))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompt_id,verdict\na,better\n", "row 2: verdict 'better' must be one of"),
        ("prompt_id;verdict;true_category\na;tie;Taste\n", "row 2: true_category 'Taste' is none"),
        ("prompt_id\tverdict\na\ttie\na\tchosen\n", "pair a is judged twice"),
        ("prompt_id,answer\na,tie\n", "column 'verdict' is missing"),
        ("", "column 'prompt_id' is missing"),
    ],
)
def test_a_sheet_that_cannot_be_understood_is_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "s.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_verdicts(tmp_path / "s.csv")


def test_verdicts_about_other_pairs_are_refused(run: Run, tmp_path: Path) -> None:
    audit(run)
    (tmp_path / "s.csv").write_text("prompt_id,verdict\nnobody,tie\n")
    with pytest.raises(DataError, match="pair nobody is not in this run's audit list"):
        import_verdicts(run, tmp_path / "s.csv")
    with pytest.raises(ConfigError, match="no such file"):
        import_verdicts(run, tmp_path / "nowhere.csv")


def test_wilsons_interval() -> None:
    # L. D. Brown, T. T. Cai, A. DasGupta, "Interval Estimation for a Binomial Proportion" (2001):
    # the roots of (p - share)^2 = z^2 p (1 - p) / n
    z = 1.959963984540054
    for hits, count in ((8, 10), (1, 30), (15, 30)):
        found = wilson(hits, count)
        for p in (found["low"], found["high"]):
            assert (p - hits / count) ** 2 == pytest.approx(z * z * p * (1 - p) / count, abs=1e-12)
    assert wilson(0, 5)["low"] == 0
    assert wilson(5, 5)["high"] == 1
    assert share_of([], lambda _: True) == {"share": None, "low": None, "high": None, "pairs": 0}


# -- export ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arm", ["jmamp", "column:beta_huber_teachers", "shuffled", "dpo:0.1", "map:beta_max=0.2"]
)
def test_the_export_is_what_our_own_training_would_read(run: Run, arm: str) -> None:
    from datasets import load_dataset

    chosen = Run(run.config.model_validate(run.config.resolved | {"export": {"arm": arm}}))
    done = export(chosen)
    assert (done["pairs"], done["eval_pairs"]) == (28, 12)
    data = load_dataset(done["folder"])
    assert {name: len(part) for name, part in data.items()} == {"train": 28, "test": 12}
    schedule_table = load_schedule(run.folder)
    ids = data["train"]["prompt_id"]
    assert np.array(data["train"]["beta"]) == pytest.approx(
        parse_arm(arm).betas(schedule_table, run.config.recipe, list(ids)), abs=0
    )
    pairs = {r["prompt_id"]: r for r in pq.read_table(run.pairs_file("train")).to_pylist()}
    for row in data["train"]:
        pair = pairs[row["prompt_id"]]
        assert row["prompt"] == pair["prompt"]
        assert row["chosen"] == [{"role": "assistant", "content": pair["chosen"]}]
        assert row["rejected"] == [{"role": "assistant", "content": pair["rejected"]}]


def test_held_out_betas_are_fitted_on_the_training_pairs(run: Run) -> None:
    def exported(arm: str) -> dict[str, dict[str, float]]:
        chosen = Run(run.config.model_validate(run.config.resolved | {"export": {"arm": arm}}))
        found = {}
        for file in Path(export(chosen)["folder"], "data").iterdir():
            table = pq.read_table(file, columns=["prompt_id", "beta"])
            found[file.name.partition("-")[0]] = dict(zip(*table.to_pydict().values(), strict=True))
        return found

    constant = exported("matched-constant")
    assert len({*constant["train"].values(), *constant["test"].values()}) == 1
    remapped = exported("map:shape=quantile")
    scaled, plain = exported("jmamp+simpo:2"), exported("jmamp")
    factor = 2 / np.mean(list(plain["train"].values()))
    for name, beta in plain["test"].items():
        assert scaled["test"][name] == pytest.approx(factor * beta, rel=1e-12)
    content = run.config.resolved | {"mapping": {"shape": "quantile"}}
    schedule(Run(run.config.model_validate(content)))  # what such a schedule says of them
    for split, name in (("train", "train"), ("eval", "test")):
        table = read_columns(run.path("schedule"), [DEFAULT_BETA], split=split)
        for row in table.to_pylist():
            assert remapped[name][row["prompt_id"]] == pytest.approx(row[DEFAULT_BETA], abs=1e-15)


def test_another_export_is_not_taken_from_a_cache(run: Run, tmp_path: Path) -> None:
    """`datasets` keeps what it loaded, and knows a folder by the names of what lies in it."""
    from datasets import load_dataset

    betas = []
    for high in (0.3, 0.2):
        arm = f"map:beta_max={high:g}"
        chosen = Run(run.config.model_validate(run.config.resolved | {"export": {"arm": arm}}))
        folder = Path(export(chosen)["folder"]).rename(tmp_path / f"{high:g}")
        (tmp_path / "same").mkdir(exist_ok=True)
        shutil.rmtree(tmp_path / "same")
        folder.rename(tmp_path / "same")
        data = load_dataset(str(tmp_path / "same"), cache_dir=str(tmp_path / "cache"))
        betas.append(max(data["train"]["beta"]))
    assert betas[1] < 0.2 < betas[0]


def test_pairs_without_a_beta_stay_behind(run: Run) -> None:
    path = run.path("annotations", "annotations.parquet")
    table = pq.read_table(path)
    keep = np.ones(table.num_rows, bool)
    keep[3] = False
    lost = table["prompt_id"][3].as_py()
    pq.write_table(table.filter(pa.array(keep)), path)
    from tests.stages.test_schedule import rehash

    rehash(run.path("annotations"), "annotations.parquet")
    schedule(run)
    done = export(run)
    assert done["pairs"] == 27
    (file,) = Path(done["folder"], "data").glob("train-*.parquet")
    exported = pq.read_table(file)
    assert lost not in exported["prompt_id"].to_pylist()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_trl_trains_with_our_betas(run: Run, tiny_student: Any, tmp_path: Path) -> None:
    """The recipe of the documentation: TRL's loss with per-pair betas is ours, and it trains."""
    import torch
    from datasets import load_dataset
    from trl import DPOConfig

    from sp2dpo_ray.modeling.student import load_model, load_tokenizer
    from sp2dpo_ray.objectives.pair_loss import logistic

    data = load_dataset(export(run)["folder"])
    policy = load_model(tiny_student, "fp32").requires_grad_(True)
    reference = load_model(tiny_student, "fp32")
    with torch.no_grad():  # a policy that has moved away from its reference
        draw = torch.Generator().manual_seed(0)
        for weight in policy.parameters():
            weight.add_(0.05 * weight.std() * torch.randn(weight.shape, generator=draw))
    trainer = recipe().PerPairDPOTrainer(
        model=policy, ref_model=reference, processing_class=load_tokenizer(tiny_student),
        train_dataset=data["train"], eval_dataset=data["test"],
        args=DPOConfig(
            output_dir=str(tmp_path / "out"), bf16=False, use_cpu=True, max_length=512,
            per_device_train_batch_size=7, max_steps=3, learning_rate=1e-2, report_to=[],
            gradient_checkpointing=False, save_strategy="no", eval_strategy="no",
        ),
    )  # fmt: skip
    rows = [trainer.train_dataset[i] for i in range(7)]
    losses = {}
    for name, betas in (("ours", [r["beta"] for r in rows]), ("mean", None)):
        mean = float(np.mean([row["beta"] for row in rows]))
        inputs = trainer.data_collator(
            [row | {"beta": row["beta"] if betas else mean} for row in rows]
        )
        with torch.no_grad():
            losses[name] = trainer.compute_loss(policy.eval(), inputs).item()
    margins = margins_of(policy, reference, trainer, rows)
    expected = logistic(margins, torch.tensor([row["beta"] for row in rows])).mean().item()
    assert losses["ours"] == pytest.approx(expected, abs=2e-6)
    assert abs(losses["ours"] - losses["mean"]) > 1e-5  # the column is not ignored

    before = trainer.evaluate()["eval_loss"]
    assert trainer.train().training_loss > 0
    assert trainer.evaluate()["eval_loss"] != before


def margins_of(policy: Any, reference: Any, trainer: Any, rows: list[dict[str, Any]]) -> Any:
    """H of each row from TRL's tokens and our own log-probabilities."""
    import torch

    from sp2dpo_ray.modeling.encode import EncodedPair
    from sp2dpo_ray.modeling.forward import response_logps
    from sp2dpo_ray.modeling.layout import collate
    from sp2dpo_ray.objectives.pair_loss import PairLogps

    encoded = [
        EncodedPair(
            row["prompt_id"],
            *(np.array(row[f"{name}_ids"], np.int32) for name in ("prompt", "chosen", "rejected")),
        )
        for row in rows
    ]
    batch = collate(encoded, list(range(len(rows))), trainer.processing_class.pad_token_id)
    with torch.no_grad():
        return PairLogps(
            *response_logps(policy, batch).view(2, -1),
            *response_logps(reference, batch).view(2, -1),
            *torch.bincount(batch.row_M).view(2, -1),
        ).margin
