"""The encoder predictor: exact exchange, losses against closed forms, training on a real Ray."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import RobertaConfig

from sp2dpo_ray.config import load_config
from sp2dpo_ray.config.distill import DistillSection, EncoderSection
from sp2dpo_ray.distill.encoder import (
    EncoderModel,
    Reading,
    check_length,
    encode,
    known_in,
    load,
    new_model,
)
from sp2dpo_ray.distill.encoder_training import fit, loss_of, pinball, steps_of
from sp2dpo_ray.distill.texts import Texts
from sp2dpo_ray.errors import ConfigError
from sp2dpo_ray.run import Run
from sp2dpo_ray.stages import STAGES
from tests.conftest import DEMO_PAIRS
from tests.distill.test_predictor import world


@pytest.fixture(scope="module")
def tiny_encoder(tiny_student: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A very small BERT with random weights and the tiny student's tokenizer."""
    from transformers import AutoTokenizer, BertConfig, BertModel

    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = AutoTokenizer.from_pretrained(tiny_student.model)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=128,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def turned(texts: Texts) -> Texts:
    return Texts(texts.prompt, texts.rejected, texts.chosen)


def test_exchanged_responses_have_one_less_the_confidence_and_the_same_category(
    tiny_encoder: str,
) -> None:
    model, tokenizer = new_model(tiny_encoder, None)
    texts, _ = world(40)
    predictor = EncoderModel(model.eval(), tokenizer, Reading(64), known_in(texts))
    one, other = predictor.predict(texts), predictor.predict(turned(texts))
    np.testing.assert_allclose(one.confidence + other.confidence, 1, atol=1e-6)
    np.testing.assert_allclose(one.shares, other.shares, atol=1e-6)
    np.testing.assert_allclose(one.shares.sum(1), 1, atol=1e-6)
    assert np.abs(one.gap - other.gap).max() > 1e-4
    single = [predictor.predict(texts.slice(i, 1)).gap[0] for i in range(5)]
    np.testing.assert_allclose(one.gap[:5], single, atol=1e-6)


def test_long_texts_leave_room_for_the_response(tiny_encoder: str) -> None:
    _, tokenizer = new_model(tiny_encoder, None)
    import pyarrow as pa

    texts = Texts(pa.array(["why " * 500]), pa.array(["yes " * 500]), pa.array(["no"]))
    batch = encode(tokenizer, texts, Reading(50))
    lengths = batch["attention_mask"].sum(1).tolist()
    assert lengths[0] == 50
    assert 20 < lengths[1] < 50  # 20 of the prompt, one between, the whole short response


def test_the_losses_are_least_at_the_truth() -> None:
    truth = torch.tensor(np.random.default_rng(0).beta(2, 5, size=4000), dtype=torch.float32)
    for quantile in (0.05, 0.5, 0.95):
        grid = torch.linspace(0, 1, 201)
        losses = [float(pinball(point.expand_as(truth), truth, quantile)) for point in grid]
        best = float(grid[int(np.argmin(losses))])
        assert best == pytest.approx(float(torch.quantile(truth, quantile)), abs=0.01)
    assert float(pinball(torch.tensor([0.2]), torch.tensor([0.5]), 0.9)) == pytest.approx(0.27)
    assert float(pinball(torch.tensor([0.5]), torch.tensor([0.2]), 0.9)) == pytest.approx(0.03)


def test_a_turned_pair_is_scored_against_turned_targets() -> None:
    _, targets = world(6)
    told = {"gaps": torch.zeros(6, 3), "confidence": torch.full((6,), 3.0),
            "category": torch.zeros(6, 6)}  # fmt: skip
    sharp = [float(loss_of(told, targets, 0.9, turned=mark)) for mark in (False, True)]
    flipped = {**told, "confidence": -told["confidence"]}
    again = [float(loss_of(flipped, targets, 0.9, turned=mark)) for mark in (False, True)]
    extra = float(
        loss_of(told, targets, 0.9, turned=True) - loss_of(flipped, targets, 0.9, turned=True)
    )
    mean = float(torch.tensor(1 - targets.confidence).mean())
    # binary cross-entropy of logits: log(1 + e^z) - p z; turning z round moves it by z (1 - 2 p)
    assert extra == pytest.approx(3.0 * (1 - 2 * mean), abs=1e-4)
    assert sharp != again


def test_every_epoch_sees_every_pair_once_in_an_order_of_the_seed() -> None:
    plan = steps_of(10, 3, 2, seed=1)
    assert [len(rows) for rows in plan] == [3] * 6
    assert len(set(np.concatenate(plan[:3]).tolist())) == 9
    np.testing.assert_array_equal(np.concatenate(plan), np.concatenate(steps_of(10, 3, 2, seed=1)))
    assert [len(rows) for rows in steps_of(2, 5, 1, seed=0)] == [2]


@pytest.mark.ray
def test_it_learns_on_ray_and_two_workers_learn_the_same(
    ray_cluster: None, tiny_encoder: str, tmp_path: Path
) -> None:
    texts, targets = world(400)
    found = []
    for workers in (1, 2):
        section = EncoderSection(
            model=tiny_encoder, max_length=48, epochs=6, learning_rate=3e-3, pairs_per_step=20,
            workers=workers,
        )  # fmt: skip
        model = fit(
            texts, targets, section, coverage=0.9, swap=True, seed=0, scratch=tmp_path / "scratch"
        )
        found.append(model.predict(texts))
    fresh, _ = world(200, seed=9)
    _, truth = world(200, seed=9)
    told = model.predict(fresh)
    constant = np.abs(np.median(targets.gap) - truth.gap).mean()
    assert np.abs(told.gap - truth.gap).mean() < 0.7 * constant
    assert (told.low < told.high).mean() > 0.95
    np.testing.assert_allclose(found[0].gap, found[1].gap, atol=2e-3)  # sums in another order
    folder = tmp_path / "saved"
    folder.mkdir()
    model.save(folder)
    np.testing.assert_allclose(load(folder).predict(fresh).gap, told.gap, atol=1e-6)
    assert not [path for path in folder.rglob("*") if path.suffix in {".bin", ".pt", ".pkl"}]


@pytest.mark.ray
def test_workers_that_the_cluster_has_no_room_for_are_refused(
    ray_cluster: None, tmp_path: Path
) -> None:
    texts, targets = world(40)
    for more in ({"workers": 3}, {"gpus_per_worker": 1}):
        section = EncoderSection(model="x", **more)
        with pytest.raises(ConfigError, match=r"distill\.encoder\.workers: .* the Ray cluster has"):
            fit(texts, targets, section, coverage=0.9, swap=True, seed=0, scratch=tmp_path)


@pytest.mark.ray
def test_an_encoder_goes_through_the_stage_and_annotates(
    ray_cluster: None, demo_config: Path, tiny_encoder: str
) -> None:
    encoder = {"model": tiny_encoder, "max_length": 64, "epochs": 1, "learning_rate": 1e-3}
    section = json.dumps({"kind": "encoder", "encoder": encoder, "least_pairs": 40})
    first = Run(load_config(str(demo_config), (
        f"data.source={DEMO_PAIRS}", "data.limit=120", f"distill={section}")))  # fmt: skip
    for name in ("prepare", "annotate"):
        STAGES[name](first)
    told = STAGES["distill"](first)
    assert told["pairs"] > 40
    assert not first.path(".distill").exists()
    teachers = f"teachers=[{{name: d, provider: predictor, model: {first.path('predictor')}}}]"
    second = Run(load_config(str(demo_config), (
        teachers, "run.name=second", "prompts.variants=[v1]")))  # fmt: skip
    pairs = STAGES["prepare"](second)
    outcomes = STAGES["annotate"](second)["outcomes"]
    assert outcomes == {"ok": pairs["pairs"] + pairs["eval_pairs"]}


def test_it_is_trained_with_the_bodys_dropout_and_predicts_without(
    tiny_encoder: str, tmp_path: Path
) -> None:
    model, tokenizer = new_model(tiny_encoder, None)
    assert all(part.training for part in model.modules())
    texts, _ = world(20)
    EncoderModel(model, tokenizer, Reading(64), known_in(texts)).save(tmp_path)
    assert not any(part.training for part in load(tmp_path).model.modules())


def test_texts_longer_than_the_positions_are_refused(tiny_encoder: str, tmp_path: Path) -> None:
    check_length(tiny_encoder, None, 128)
    with pytest.raises(ConfigError, match=r"max_length: 129 tokens, and .* has positions for 128"):
        check_length(tiny_encoder, None, 129)
    RobertaConfig(max_position_embeddings=130, pad_token_id=1).save_pretrained(tmp_path)
    check_length(str(tmp_path), None, 128)
    with pytest.raises(ConfigError, match="has positions for 128"):
        check_length(str(tmp_path), None, 129)


def test_encoders_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"distill\.encoder\.model: "):
        new_model(str(tmp_path), None)
    with pytest.raises(ValidationError, match="belong together"):
        DistillSection(kind="encoder")
    with pytest.raises(ValidationError, match="only light ones"):
        DistillSection(kind="encoder", encoder={"model": "x"}, frontier=(0.5,))
    with pytest.raises(ValidationError, match="leaves some of 4 workers without a pair"):
        EncoderSection(model="x", workers=4, pairs_per_step=3)
    with pytest.raises(ValidationError, match="belong together"):
        DistillSection(encoder={"model": "x"})
