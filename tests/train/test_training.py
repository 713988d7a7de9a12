"""Training on a real Ray: gradients, workers, resume, failures, and what it leaves behind."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from sp2dpo_ray.config import LoraSection, load_config
from sp2dpo_ray.core.methods import METHODS
from sp2dpo_ray.core.pairs import Pair
from sp2dpo_ray.errors import ConfigError, DataError, TrainingError
from sp2dpo_ray.modeling.attention import attention
from sp2dpo_ray.modeling.encode import Encoding, encode_pairs
from sp2dpo_ray.modeling.forward import Scorer, base_of, response_logps
from sp2dpo_ray.modeling.layout import PLAIN, SHARED
from sp2dpo_ray.modeling.student import add_adapter, load_model, load_tokenizer, trainable
from sp2dpo_ray.objectives.pair_loss import LOSSES
from sp2dpo_ray.objectives.step_methods import STEP_METHODS
from sp2dpo_ray.reference.parts import Parts
from sp2dpo_ray.run import Run
from sp2dpo_ray.stages import STAGES
from sp2dpo_ray.stages.student import student_ref
from sp2dpo_ray.stages.train import train
from sp2dpo_ray.train.loop import steps_of
from sp2dpo_ray.train.loss import Loss
from sp2dpo_ray.train.memory import decide, free_bytes, saved_bytes
from sp2dpo_ray.train.metrics import METRICS, means
from sp2dpo_ray.train.step import Computing, Team, accumulate, pair_logps
from sp2dpo_ray.train.task import Pairs
from tests.processes import hears_interrupts, kill_tree


@pytest.fixture
def material(tiny_student: Any, demo_rows: list[dict[str, Any]]) -> tuple[Any, Pairs, int]:
    """A student with an adapter in float64, without dropout, and twelve pairs."""
    tokenizer = load_tokenizer(tiny_student)
    model = add_adapter(load_model(tiny_student, "fp32").double(), LoraSection(r=4, dropout=0),
                        seed=0)  # fmt: skip
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in trainable(model):
            weight.copy_(0.1 * torch.randn(weight.shape, generator=draw, dtype=torch.float64))
    pairs = [
        Pair(row["prompt_id"], [{"role": "user", "content": row["prompt"]}], row["chosen"],
             row["rejected"])
        for row in demo_rows[:12]
    ]  # fmt: skip
    encoded = encode_pairs(pairs, tokenizer, Encoding(256, 128))
    reference = torch.linspace(-200, -100, 12, dtype=torch.float64)
    beta = torch.linspace(0.03, 0.3, 12, dtype=torch.float64)
    return model, Pairs(encoded, reference, reference.flip(0), beta), tokenizer.pad_token_id


def gradient(
    model: Any, pairs: Pairs, everyone: list[int], tokens: int, pad_id: int,
    layout: str = PLAIN, world: int = 1, lockstep: bool = False, method: str = "logistic",
) -> tuple[torch.Tensor, dict[str, float]]:  # fmt: skip
    """The gradient of one step whose pairs are spread over so many workers."""
    how = Computing(pad_id, torch.device("cpu"), tokens, layout)
    model.zero_grad()
    sums = torch.zeros(len(METRICS), dtype=torch.float64)
    for rank in range(world):
        sums += accumulate(
            Scorer(model, 1 << 20, unsure=METHODS[method].tokens), pairs, everyone, how=how,
            loss=Loss(method),
            team=Team(rank, world, lockstep),
        )  # fmt: skip
    flat = torch.cat([weight.grad.flatten() for weight in trainable(model)])
    return flat, means(sums)


def alike(figures: dict[str, float]) -> dict[str, float]:
    """The figures that do not tell how a step was cut."""
    return {name: value for name, value in figures.items() if name != "computed_tokens"}


def test_the_gradient_does_not_depend_on_workers_or_micro_batches(
    material: tuple[Any, Pairs, int],
) -> None:
    model, pairs, pad_id = material
    everyone = list(range(12))
    whole, figures = gradient(model, pairs, everyone, 10**6, pad_id)
    assert whole.abs().max() > 1e-6
    for world, tokens, lockstep in (
        (1, 300, False),
        (2, 10**6, False),
        (5, 500, False),
        (5, 300, True),  # some make passes for nothing, to keep step with the others
        (13, 10**6, False),  # one worker has no pair at all
        (13, 10**6, True),
    ):
        other, others = gradient(
            model, pairs, everyone, tokens, pad_id, world=world, lockstep=lockstep
        )
        assert (other - whole).abs().max() <= 1e-10 * whole.abs().max()
        assert alike(others) == pytest.approx(alike(figures), rel=1e-10)


@pytest.mark.parametrize("method", [*LOSSES, *STEP_METHODS])
def test_no_methods_gradient_depends_on_micro_batches(
    material: tuple[Any, Pairs, int], method: str
) -> None:
    """Terms of a step are measured over the step, whatever it is cut into."""
    model, pairs, pad_id = material
    everyone = list(range(12))
    whole, _ = gradient(model, pairs, everyone, 10**6, pad_id, method=method)
    cut, _ = gradient(model, pairs, everyone, 300, pad_id, method=method)
    assert whole.abs().max() > 0
    assert (cut - whole).abs().max() <= 1e-9 * whole.abs().max()


def test_weights_scale_pairs_and_supervised_ones_learn_to_write(
    material: tuple[Any, Pairs, int],
) -> None:
    model, pairs, pad_id = material
    alone = [gradient(model, pairs, [i], 10**6, pad_id)[0] for i in range(3)]
    weighted = replace(pairs, weight=torch.linspace(0, 2, 12, dtype=torch.float64))
    found, _ = gradient(model, weighted, [0, 1, 2], 10**6, pad_id)
    expected = sum(g * w for g, w in zip(alone, weighted.weight[:3], strict=True)) / 3
    # norms compute in float32, and other neighbours pad a row to another width
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()

    taught = replace(pairs, supervised=torch.arange(12) == 1)
    found, figures = gradient(model, taught, [1], 10**6, pad_id)
    how = Computing(pad_id, torch.device("cpu"), 10**6, PLAIN)
    logps = pair_logps(Scorer(model, 1 << 20), pairs, [1], how)
    model.zero_grad()
    (-logps.chosen / len(pairs.encoded[1].chosen)).sum().backward()
    expected = torch.cat([weight.grad.flatten() for weight in trainable(model)])
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()
    assert figures["loss"] == pytest.approx(-logps.chosen.item() / len(pairs.encoded[1].chosen))


def test_betas_that_move_are_traced_and_stay_in_the_envelope(
    material: tuple[Any, Pairs, int],
) -> None:
    model, pairs, pad_id = material
    how = Computing(pad_id, torch.device("cpu"), 300, PLAIN)
    trace: list[Any] = []
    loss = Loss("hybrid", {"a": 0.9}, envelope=(0.05, 0.25))
    model.zero_grad()
    sums = accumulate(
        Scorer(model, 1 << 20), pairs, list(range(12)), how=how, loss=loss, trace=trace
    )
    assert sorted(place for place, _, _ in trace) == list(range(12))
    for place, beta, margin in trace:
        prior = pairs.beta[place].item()
        moved = prior * (1 + 0.9 * math.tanh(prior * margin / 2))
        assert beta == pytest.approx(min(max(moved, 0.05), 0.25), rel=1e-9)
    # the gradient is that of these betas, held still
    moving = torch.cat([weight.grad.flatten() for weight in trainable(model)])
    fixed = replace(pairs, beta=torch.tensor([b for _, b, _ in sorted(trace)], dtype=torch.float64))
    still, _ = gradient(model, fixed, list(range(12)), 300, pad_id)
    assert (moving - still).abs().max() <= 1e-12 * still.abs().max()
    assert means(sums)["beta"] == pytest.approx(fixed.beta.mean().item(), rel=1e-9)


def test_the_shared_layout_gives_the_same_gradient_in_any_cut(
    material: tuple[Any, Pairs, int],
) -> None:
    model, pairs, pad_id = material
    everyone = list(range(12))
    plain, figures = gradient(model, pairs, everyone, 10**6, pad_id)
    with attention(base_of(model), SHARED):
        for world, tokens in ((1, 10**6), (2, 300)):
            shared, others = gradient(model, pairs, everyone, tokens, pad_id, SHARED, world)
            # the architecture's norms compute in float32 whatever the weights are
            assert (shared - plain).abs().max() <= 1e-6 * plain.abs().max()
            assert alike(others) == pytest.approx(alike(figures), rel=1e-6)
            assert others["computed_tokens"] < figures["computed_tokens"]


@pytest.mark.parametrize("layout", [SHARED, PLAIN])
def test_checkpointed_activations_change_no_bit(
    material: tuple[Any, Pairs, int], layout: str
) -> None:
    model, pairs, pad_id = material
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.3
    model.train()
    found, kept = [], []
    how = Computing(pad_id, torch.device("cpu"), 10**6, layout)
    with attention(base_of(model), layout):
        for setting in ("off", "on"):
            assert decide(setting, None, model, how.device).on is (setting == "on")
            torch.manual_seed(0)
            found.append(gradient(model, pairs, [0, 5, 7], 400, pad_id, layout)[0])
            kept.append(
                saved_bytes(lambda: pair_logps(Scorer(model), pairs, [0, 5, 7], how), model)
            )
    assert torch.equal(*found)
    assert kept[1] < kept[0] / 2


def test_memory_decides_about_checkpointing(
    material: tuple[Any, Pairs, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, pairs, pad_id = material
    how = Computing(pad_id, torch.device("cpu"), 10**6, PLAIN)

    def forward() -> Any:
        return pair_logps(Scorer(model.train()), pairs, [0, 1], how)

    needed = saved_bytes(forward, model)
    half = decide("auto", forward, model, how.device, share=0.5)
    assert half.free == pytest.approx(free_bytes(how.device) / 2, rel=0.2)
    for free, expected in ((2 * needed, False), (needed, True)):
        monkeypatch.setattr("sp2dpo_ray.train.memory.free_bytes", lambda device, free=free: free)
        random_state = torch.get_rng_state()
        decision = decide("auto", forward, model, how.device)
        assert (decision.on, decision.free) == (expected, free)
        assert torch.equal(torch.get_rng_state(), random_state)

    def too_large() -> Any:
        torch.rand(3)
        raise torch.OutOfMemoryError("CUDA out of memory")

    random_state = torch.get_rng_state()
    assert decide("auto", too_large, model, how.device).on  # it ends nothing: it is the answer
    assert torch.equal(torch.get_rng_state(), random_state)
    with pytest.raises(TrainingError, match="no memory for one forward pass"):
        decide("auto", too_large, model, how.device, lockstep=True)  # others would wait for ever


@pytest.mark.parametrize("layout", [SHARED, PLAIN])
def test_memory_is_measured_on_the_batch_of_the_most_tokens(
    material: tuple[Any, Pairs, int], layout: str
) -> None:
    """Not on that of the longest pairs, which may fill the budget worse."""
    _, pairs, pad_id = material
    plan = steps_of(len(pairs), 6, 2, 0)
    for tokens in (260, 300, 400):
        how = Computing(pad_id, torch.device("cpu"), tokens, layout)
        every = [
            how.computed_tokens(pairs, batch)
            for step in plan
            for rank in range(2)
            for batch in how.batches(pairs, step[rank::2])
        ]
        assert how.computed_tokens(pairs, how.largest(pairs, plan, 2)) == max(every)


def test_the_gradient_is_that_of_eq_5(material: tuple[Any, Pairs, int]) -> None:
    """Against autograd through one pair at a time, weighted by -beta sigmoid(-beta margin)."""
    model, pairs, pad_id = material
    ours, figures = gradient(model, pairs, list(range(12)), 10**6, pad_id)
    from sp2dpo_ray.modeling.layout import collate

    expected, losses = torch.zeros_like(ours), []
    for i in range(12):
        model.zero_grad()
        chosen, rejected = response_logps(model, collate(pairs.encoded, [i], pad_id))
        margin = (chosen - rejected) - (pairs.ref_chosen[i] - pairs.ref_rejected[i])
        (chosen - rejected).backward()
        slope = torch.cat([weight.grad.flatten() for weight in trainable(model)])
        beta = pairs.beta[i]
        expected += -beta * torch.sigmoid(-beta * margin.detach()) * slope / 12
        losses.append(torch.nn.functional.softplus(-beta * margin.detach()).item())
    # the architecture's norms compute in float32 whatever the weights are
    assert (ours - expected).abs().max() <= 1e-6 * expected.abs().max()
    assert figures["loss"] == pytest.approx(np.mean(losses), rel=1e-6)


def test_a_loss_that_is_not_finite_names_its_pairs(material: tuple[Any, Pairs, int]) -> None:
    model, pairs, pad_id = material
    broken = Pairs(pairs.encoded, pairs.ref_chosen.clone(), pairs.ref_rejected, pairs.beta)
    broken.ref_chosen[3] = float("nan")
    with pytest.raises(TrainingError, match=r"its pairs are \['\w+-\d\d'\]"):
        gradient(model, broken, [3], 10**6, pad_id)


def test_data_order_is_a_function_of_the_seed() -> None:
    plan = steps_of(10, 4, 2, seed=0)
    assert [len(step) for step in plan] == [4, 4, 2, 4, 4, 2]
    for epoch in (plan[:3], plan[3:]):
        assert sorted(i for step in epoch for i in step) == list(range(10))
    assert plan[:3] != plan[3:]
    assert steps_of(10, 4, 2, seed=0) == plan
    assert steps_of(10, 4, 2, seed=1) != plan


def prepared(config: Path, *overrides: str) -> Run:
    run = Run(load_config(str(config), overrides))
    run.write_lambda()
    for stage in ("prepare", "student", "annotate", "schedule", "reference"):
        STAGES[stage](run)
    return run


def metric_rows(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.ray
@pytest.mark.slow
def test_an_arm_from_end_to_end(ray_cluster: None, demo_config: Path) -> None:
    run = prepared(demo_config)
    summary = train(run, "jmamp")
    folder = run.path("train", "jmamp")
    assert summary["pairs"] == 28
    assert summary["steps"] == 4
    rows = metric_rows(folder)
    # before the first update policy and reference are one model
    assert rows[0]["logratio/margins"] == pytest.approx(0, abs=1e-3)
    assert rows[0]["loss"] == pytest.approx(np.log(2), abs=1e-4)
    schedule = pq.read_table(run.path("schedule", "schedule.parquet"))
    mean_beta = schedule["beta_annotators_mean_ens"].to_numpy().mean()
    weighted = sum(row["beta"] * row["pairs"] for row in rows) / 28
    assert weighted == pytest.approx(mean_beta, rel=1e-5)

    held_out = pq.read_table(folder / "eval_pairs.parquet")
    assert held_out.num_rows == 12
    margin = held_out["margin"].to_numpy()
    assert summary["eval"]["accuracy"] == pytest.approx((margin > 0).mean())
    assert summary["eval"]["margin"] == pytest.approx(margin.mean())
    for groups in ("by_category", "by_beta"):
        assert sum(group["pairs"] for group in summary["eval"][groups].values()) == 12

    # adapter and merged model are the same policy, and the one that was scored
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(run.path("student", "model"))
    adapted = PeftModel.from_pretrained(base, folder / "adapter").eval()
    merged = AutoModelForCausalLM.from_pretrained(folder / "merged").eval()
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        one, other = adapted(input_ids=ids).logits, merged(input_ids=ids).logits
    assert torch.allclose(one, other, atol=1e-4)

    assert not (folder / "checkpoints").exists()
    assert train(run, "jmamp")["reused"] is True

    record = json.loads((folder / "training.json").read_text())
    assert "training.json" in json.loads((folder / "manifest.json").read_text())["files"]
    assert record["versions"]["torch"] == torch.__version__
    assert (record["workers"], record["strategy"], record["device"]) == (2, "ddp", "cpu")
    template = load_tokenizer(student_ref(run)).chat_template
    assert record["chat_template"] == hashlib.sha256(json.dumps(template).encode()).hexdigest()
    order = record["data_order"]

    # one worker, another cut of the batches: the same training up to rounding
    plain = ("student.lora.dropout=0",)
    cut = ("train.workers=1", "train.tokens_per_batch=600")
    train(Run(load_config(str(demo_config), plain + cut)), "jmamp")
    losses_single = [row["loss"] for row in metric_rows(folder)]
    # logged by threes: other lines, the same figures
    wide = Run(load_config(str(demo_config), (*plain, "train.log_steps=3")))
    figures = train(wide, "jmamp")
    assert [row["step"] for row in metric_rows(folder)] == [3, 4]
    assert figures["loss"] == pytest.approx(
        sum(loss * size for loss, size in zip(losses_single, (8, 8, 8, 4), strict=True)) / 28,
        abs=1e-5,
    )
    assert figures["tokens"] == summary["tokens"]
    assert json.loads((folder / "training.json").read_text())["data_order"] == order
    assert losses_single[-1] != losses_single[0]


@pytest.mark.ray
def test_every_arm_reads_one_reference(ray_cluster: None, demo_config: Path) -> None:
    run = prepared(demo_config)
    (folder,) = run.path("reference").iterdir()
    stamp = (folder / "reference.parquet").stat().st_mtime_ns
    for override in (
        "mapping.beta_max=0.2",
        "train.learning_rate=0.1",
        "train.epochs=2",
        "train.arm=dpo:0.3",
        "student.lora.r=2",
        "train.pairs_per_step=4",
    ):
        other = Run(load_config(str(demo_config), (override,)))
        assert STAGES["reference"](other)["reused"] is True
    assert (folder / "reference.parquet").stat().st_mtime_ns == stamp
    longer = Run(load_config(str(demo_config), ("train.max_length=200",)))
    assert STAGES["reference"](longer)["reused"] is False

    table = pq.read_table(folder / "reference.parquet")
    assert table.num_rows == 40
    assert table["prompt_id"].to_pylist() == sorted(table["prompt_id"].to_pylist())


@pytest.mark.ray
def test_an_interrupted_reference_computes_no_finished_block_again(
    ray_cluster: None, demo_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sp2dpo_ray.reference.pipeline.PAIRS_PER_BLOCK", 16)
    run = Run(load_config(str(demo_config)))
    run.write_lambda()
    STAGES["prepare"](run)
    STAGES["student"](run)
    real, kept = Parts.keep, []

    def keep(parts: Parts, block: pa.Table) -> None:
        real(parts, block)
        kept.append(block["prompt_id"].to_pylist())
        if len(kept) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Parts, "keep", keep)
    with pytest.raises(KeyboardInterrupt):
        STAGES["reference"](run)
    assert STAGES["reference"](run)["pairs"] == 40
    assert len(kept) == 3  # 40 pairs are 3 blocks
    assert len({name for block in kept for name in block}) == 40
    (folder,) = run.path("reference").iterdir()  # and no parts beside it
    resumed = pq.read_table(folder / "reference.parquet")
    shutil.rmtree(folder)
    STAGES["reference"](run)
    assert pq.read_table(folder / "reference.parquet").equals(resumed)


def test_a_pair_longer_than_the_budget_is_trained_by_itself(
    material: tuple[Any, Pairs, int],
) -> None:
    model, pairs, pad_id = material
    everyone = list(range(12))
    assert all(len(p.prompt) + len(p.chosen) > 8 for p in pairs.encoded)
    whole, figures = gradient(model, pairs, everyone, 10**6, pad_id)
    with attention(base_of(model), SHARED):
        for tokens in (8, 1):
            alone, others = gradient(model, pairs, everyone, tokens, pad_id, SHARED)
            assert (alone - whole).abs().max() <= 1e-6 * whole.abs().max()
            assert others["pairs"] == figures["pairs"] == 12


@pytest.mark.ray
def test_a_changed_training_option_leaves_the_schedule_alone(
    ray_cluster: None, demo_config: Path
) -> None:
    run = prepared(demo_config)
    before = run.path("schedule", "manifest.json").read_bytes()
    other = Run(load_config(str(demo_config), ("train.learning_rate=0.5",)))
    assert STAGES["schedule"](other)["reused"] is True
    assert run.path("schedule", "manifest.json").read_bytes() == before
    changed = Run(load_config(str(demo_config), ("mapping.beta_max=0.2",)))
    assert STAGES["schedule"](changed)["reused"] is False


@pytest.mark.ray
def test_more_workers_than_cores_are_refused(ray_cluster: None, demo_config: Path) -> None:
    run = prepared(demo_config)
    wide = Run(load_config(str(demo_config), ("train.workers=7",)))
    with pytest.raises(ConfigError, match="7 workers need 7 CPUs, the Ray cluster has 2"):
        train(wide, "jmamp")
    assert run.path("schedule").exists()


@pytest.mark.ray
def test_an_arm_without_its_schedule_says_what_to_run(ray_cluster: None, demo_config: Path) -> None:
    run = Run(load_config(str(demo_config)))
    run.write_lambda()
    for stage in ("prepare", "student", "reference"):
        STAGES[stage](run)
    with pytest.raises(DataError, match="run: sp2dpo schedule"):
        train(run, "jmamp")


@pytest.mark.ray
def test_a_divergent_training_ends_with_exit_code_5(ray_cluster: None, demo_config: Path) -> None:
    run = prepared(demo_config)
    folder = next(run.path("reference").iterdir())
    table = pq.read_table(folder / "reference.parquet")
    minus_infinity = pa.array([float("-inf")] * table.num_rows, pa.float32())
    place = table.column_names.index("chosen_logp")
    pq.write_table(table.set_column(place, "chosen_logp", minus_infinity),
                   folder / "reference.parquet")  # fmt: skip
    manifest = folder / "manifest.json"
    content = json.loads(manifest.read_text())
    from sp2dpo_ray.core.hashing import sha256_file

    content["files"]["reference.parquet"] = sha256_file(folder / "reference.parquet")
    manifest.write_text(json.dumps(content))
    with pytest.raises(TrainingError) as failed:
        train(run, "dpo:0.1")
    assert failed.value.exit_code == 5
    assert "margin or loss of a batch is not finite" in str(failed.value)
    assert re.search(r"its pairs are \['\w+-\d\d'", str(failed.value))
    assert not run.path("train", "dpo-0.1", "manifest.json").exists()


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_training_resumes_to_the_same_adapter(
    ray_cluster: None, demo_config: Path
) -> None:
    """SIGKILL after a checkpoint; at the same world size not one bit may differ."""
    overrides = ("train.epochs=16", "train.save_steps=5")
    total = 64
    run = prepared(demo_config, *overrides)
    folder = run.path("train", "jmamp")
    arguments = [a for override in overrides for a in ("--set", override)]
    process = subprocess.Popen(
        [sys.executable, "-m", "sp2dpo_ray", "train", str(demo_config), *arguments],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wait_for_checkpoint(process, folder)
    kill_tree(process.pid)
    process.wait()
    steps_before = len(metric_rows(folder))
    assert 0 < steps_before < total
    assert not (folder / "manifest.json").exists()

    def adapter() -> bytes:
        return (folder / "adapter" / "adapter_model.safetensors").read_bytes()

    assert train(run, "jmamp")["steps"] == total
    assert [row["step"] for row in metric_rows(folder)] == list(range(1, total + 1))
    resumed, losses = adapter(), [row["loss"] for row in metric_rows(folder)]
    (folder / "manifest.json").unlink()
    train(run, "jmamp")  # undisturbed: the checkpoints are gone
    assert adapter() == resumed
    assert [row["loss"] for row in metric_rows(folder)] == losses


@pytest.mark.ray
@pytest.mark.slow
def test_an_interrupted_training_is_resumable(ray_cluster: None, demo_config: Path) -> None:
    """Ray Train would end the process with exit code 0 on Ctrl-C."""
    overrides = ("train.epochs=40", "train.save_steps=2")
    run = prepared(demo_config, *overrides)
    arguments = [a for override in overrides for a in ("--set", override)]
    process = subprocess.Popen(
        [sys.executable, "-m", "sp2dpo_ray", "train", str(demo_config), *arguments],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=hears_interrupts,
    )  # fmt: skip
    wait_for_checkpoint(process, run.path("train", "jmamp"))
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 4, said
    assert "interrupted. What was finished is kept" in said
    assert "Traceback" not in said
    assert list(run.path("train", "jmamp").rglob("part-0.json"))


def wait_for_checkpoint(process: subprocess.Popen, folder: Path) -> None:
    deadline = time.monotonic() + 300
    while not list(folder.rglob("part-0.json")) and time.monotonic() < deadline:
        assert process.poll() is None, "training ended before it could be stopped"
        time.sleep(0.02)
