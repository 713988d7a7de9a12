"""Strategies: whatever lies on which worker, the training is the same."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from sp2dpo_ray.config import LoraSection, TrainSection
from sp2dpo_ray.core.pairs import Pair
from sp2dpo_ray.errors import ConfigError
from sp2dpo_ray.modeling.encode import Encoding, encode_pairs
from sp2dpo_ray.modeling.student import find_student, load_model, load_tokenizer
from sp2dpo_ray.train.loop import steps_of
from sp2dpo_ray.train.step import Computing
from sp2dpo_ray.train.strategies import Setup, strategy_of
from sp2dpo_ray.train.strategies.base import make_optimizer
from sp2dpo_ray.train.task import Pairs
from tests.train.workers import Job, train_together

SHARES = ("zero2", "zero3", "fsdp")
LORA = LoraSection(r=4, dropout=0)
WIDE = 4096  # words of a student whose logits do not fit into one piece
TRAIN = {"precision": "fp32", "pairs_per_step": 4, "tokens_per_batch": 300, "epochs": 2,
         "learning_rate": 1e-3, "gpus_per_worker": 0, "workers": 2}  # fmt: skip


@pytest.fixture(scope="module")
def pairs(tiny_student: Any, demo_rows: list[dict[str, Any]]) -> Pairs:
    """Eleven pairs: the last step leaves the second worker with fewer of them than the first."""
    rows = [
        Pair(row["prompt_id"], [{"role": "user", "content": row["prompt"]}], row["chosen"],
             row["rejected"])
        for row in demo_rows[:11]
    ]  # fmt: skip
    encoded = encode_pairs(rows, load_tokenizer(tiny_student), Encoding(256, 128))
    reference = torch.linspace(-200, -100, 11)
    return Pairs(encoded, reference, reference.flip(0), torch.linspace(0.03, 0.3, 11))


@pytest.fixture(scope="module")
def wide_student(tiny_student: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """With so many words that workers cut their logits into different numbers of pieces."""
    folder = tmp_path_factory.mktemp("wide")
    config = AutoConfig.from_pretrained(tiny_student.model, vocab_size=WIDE)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    load_tokenizer(tiny_student).save_pretrained(folder)
    return find_student(str(folder), None)


@pytest.fixture(scope="module")
def results(
    tiny_student: Any, wide_student: Any, pairs: Pairs, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, dict[str, dict[str, Any]]]:
    """What came of every job, by the number of workers."""
    folder = tmp_path_factory.mktemp("strategies")

    def job(
        strategy: str, lora: LoraSection | None = LORA, student: Any = tiny_student, **more: Any
    ) -> Job:
        given = {name: more.pop(name) for name in tuple(more) if name in TrainSection.model_fields}
        options = TrainSection(**(TRAIN | {"strategy": strategy} | given))
        return Job(student, pairs, options, lora, folder / strategy, **more)

    alone = {"lora": job("ddp"), "full": job("ddp", None)}
    together = {"ddp lora": job("ddp", save_at=3), "ddp resumed": job("ddp", restore=True,
                save_at=3)}  # fmt: skip
    for name in SHARES:
        together[f"{name} lora"] = job(name, save_at=3)
        together[f"{name} resumed"] = job(name, save_at=3, restore=True)
        together[f"{name} full"] = job(name, None, gradient_checkpointing="on")
        together[f"{name} peft"] = job(name, fused_lora=False)
    # terms of a step, from all workers, before the passes with gradients
    for name in ("ddp", "zero3"):
        together[f"{name} step"] = job(name, loss="beta_dpo")
    alone["step"] = job("ddp", loss="beta_dpo")
    for how, lora in (("lora", LORA), ("full", None)):
        alone[f"wide {how}"] = job("ddp", lora, wide_student)
        for name in ("zero3", "fsdp"):
            together[f"{name} wide {how}"] = job(name, lora, wide_student, head_mib=1)
    found = {2: train_together(together, 2, folder)}
    # FSDP's state serves another number of workers
    alone["fsdp resumed"] = job("fsdp", save_at=3, restore=True)
    return found | {1: train_together(alone, 1, folder)}


def same(one: dict[str, Any], other: dict[str, Any], tolerance: float = 1e-5) -> None:
    assert one["losses"] == pytest.approx(other["losses"], rel=tolerance)
    assert one["norms"] == pytest.approx(other["norms"], rel=10 * tolerance)
    assert one["trained"].keys() == other["trained"].keys()
    for name, tensor in one["trained"].items():
        assert torch.allclose(tensor.float(), other["trained"][name], atol=20 * tolerance), name


@pytest.mark.slow
@pytest.mark.parametrize("how", ["lora", "full", "peft"])
@pytest.mark.parametrize("strategy", SHARES)
def test_shares_train_as_one_worker_that_holds_everything(
    results: Any, strategy: str, how: str
) -> None:
    alone = results[1]["full" if how == "full" else "lora"]
    assert abs(alone["losses"][-1] - alone["losses"][0]) > 1e-3
    same(results[2][f"{strategy} {how}"], alone)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["wide lora", "wide full"])
@pytest.mark.parametrize("strategy", ["zero3", "fsdp"])
def test_workers_may_cut_the_head_into_different_numbers_of_pieces(
    results: Any, pairs: Pairs, strategy: str, how: str
) -> None:
    options = TrainSection(**TRAIN)
    cut = Computing(0, torch.device("cpu"), options.tokens_per_batch, options.layout)
    rows = (1 << 20) // (4 * WIDE)  # of logits in a piece of one MiB
    pieces = [
        [[-(-sum(len(pairs.encoded[i].chosen) + len(pairs.encoded[i].rejected) for i in batch)
            // rows) for batch in cut.batches(pairs, step[rank::2])] for rank in range(2)]
        for step in steps_of(len(pairs), options.pairs_per_step, options.epochs, options.seed)
    ]  # fmt: skip
    assert any(one != other for one, other in pieces)
    same(results[2][f"{strategy} {how}"], results[1][how])


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "zero3"])
def test_terms_of_a_step_are_those_of_all_workers(results: Any, strategy: str) -> None:
    same(results[2][f"{strategy} step"], results[1]["step"])


@pytest.mark.slow
def test_two_whole_students_train_as_one(results: Any) -> None:
    same(results[2]["ddp lora"], results[1]["lora"])


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", *SHARES])
def test_a_saved_state_goes_on_to_the_same_bits(results: Any, strategy: str) -> None:
    whole, resumed = (results[2][f"{strategy} {how}"] for how in ("lora", "resumed"))
    assert resumed["losses"] == whole["losses"][3:]
    for name, tensor in whole["trained"].items():
        assert torch.equal(tensor, resumed["trained"][name]), name


@pytest.mark.slow
def test_fsdp_goes_on_with_another_number_of_workers(results: Any) -> None:
    whole, resumed = results[2]["fsdp lora"], results[1]["fsdp resumed"]
    assert resumed["losses"] == pytest.approx(whole["losses"][3:], rel=1e-5)


# -- what a machine lacks --------------------------------------------------------------------------


def test_what_only_a_gpu_can_do_says_what_to_install(
    tiny_student: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ConfigError, match=r"precision: nf4 needs bitsandbytes and a CUDA GPU; pip"):
        load_model(tiny_student, "nf4")
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    options = TrainSection(optimizer="paged_adamw_32bit")
    setup = Setup(options, torch.device("cpu"), 10)
    with pytest.raises(ConfigError, match=r"paged_adamw_32bit needs bitsandbytes.*\[quantized\]"):
        make_optimizer([torch.nn.Parameter(torch.zeros(1))], setup)


def test_a_machine_without_deepspeed_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    monkeypatch.delitem(sys.modules, "sp2dpo_ray.train.strategies.zero", raising=False)
    setup = Setup(TrainSection(), torch.device("cpu"), 10)
    with pytest.raises(ConfigError, match=r"zero3 needs DeepSpeed; pip install 'sp2dpo-ray\[deep"):
        strategy_of("zero3", torch.nn.Linear(1, 1), setup)
