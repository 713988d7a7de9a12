"""One epoch of DPO with its reference pass: this engine against TRL, side by side.

Run as: python benchmarks/train.py PAIRS.parquet [--pairs 256] [--laps 1] [--only NAME ...]. Each
contestant is a process of its own on all cores, with the same student (Qwen3-shaped, 8 layers x
256, 8k vocabulary, random weights), LoRA r 16 with dropout 0.05 on all seven projections, AdamW,
float32, max_length 1024, 16 pairs a step, beta 0.1. Seconds begin after imports and loading, with
the encoding of the pairs, and end with the last step; peak memory is that of the process. The
contestants take turns; medians are printed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from math import nan
from pathlib import Path
from typing import Any

import torch

PAIRS_PER_STEP, MAX_LENGTH, RATE, BETA = 16, 1024, 5e-6, 0.1
LORA = {"r": 16, "alpha": 32, "dropout": 0.05}
SLICES = ("all", "prompt-heavy", "response-heavy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source")
    parser.add_argument("--pairs", type=int, default=256)
    parser.add_argument("--laps", type=int, default=1)
    parser.add_argument("--slice", choices=SLICES, default="all")
    parser.add_argument("--only", nargs="*", default=None)
    parser.add_argument("--child", nargs=2)
    chosen = parser.parse_args()
    if chosen.child:
        name, student = chosen.child
        pairs = read_pairs(chosen.source, chosen.pairs, chosen.slice)
        made = CONTESTANTS[name](pairs, Path(student))
        made["mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        print(json.dumps(made))
        return
    with tempfile.TemporaryDirectory(prefix="sp2dpo-benchmark-") as folder:
        make_student(chosen.source, chosen.pairs, Path(folder))
        names = chosen.only or list(CONTESTANTS)
        laps: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for _ in range(chosen.laps):
            for name in names:
                laps[name].append(_lap(name, folder, chosen))
                print(f"{name}: {laps[name][-1]}", file=sys.stderr, flush=True)
    print(f"\n{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}; "
          f"{chosen.pairs} pairs ({chosen.slice})\n")  # fmt: skip
    print("| who | reference s | training s | all s | tokens computed | peak MB | first loss "
          "| mean loss |\n|---|---|---|---|---|---|---|---|")  # fmt: skip
    for name, rows in laps.items():

        def middle(key: str, rows: list[dict[str, Any]] = rows) -> float:
            return statistics.median(row[key] for row in rows)

        seconds = middle("reference"), middle("training")
        print(f"| {name} | {seconds[0]:.1f} | {seconds[1]:.1f} | {sum(seconds):.1f} "
              f"| {middle('tokens') or nan:,.0f} | {middle('mb'):,.0f} | {rows[0]['first']:.5f} "
              f"| {rows[0]['loss']:.5f} |")  # fmt: skip


def _lap(name: str, student: str, chosen: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, chosen.source, "--pairs", str(chosen.pairs),
               "--slice", chosen.slice, "--child", name, student]  # fmt: skip
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def read_pairs(source: str, count: int, part: str) -> list[Any]:
    """The first so many pairs, or those of a slice by the prompt's share of the characters."""
    from sp2dpo_ray.core.pairs import Pair
    from sp2dpo_ray.core.pairs import read_pairs as read
    from sp2dpo_ray.core.sources import read_source

    rows = [p for p in read(read_source(source, split=None, revision=None)) if isinstance(p, Pair)]

    def share(pair: Pair) -> float:
        prompt = len(pair.prompt_text)
        return prompt / (prompt + len(pair.chosen) + len(pair.rejected))

    if part == "prompt-heavy":
        rows.sort(key=share, reverse=True)
    if part == "response-heavy":
        rows.sort(key=share)
    return rows[:count]


def make_student(source: str, count: int, folder: Path) -> None:
    from sp2dpo_ray.config import TinySection
    from sp2dpo_ray.modeling.tiny import make_tiny_student

    options = TinySection(vocabulary=8192, layers=8, hidden=256, heads=8, steps=0)
    make_tiny_student(read_pairs(source, 2048, "all"), options, folder)


def engine(pairs: list[Any], student: Path, **switches: Any) -> dict[str, Any]:
    """This engine, without Ray: encoding, reference pass, steps."""
    from sp2dpo_ray.config import LoraSection
    from sp2dpo_ray.modeling.encode import Encoding, encode_pairs
    from sp2dpo_ray.modeling.forward import Scorer
    from sp2dpo_ray.modeling.layout import collate, plan_batches, row_tokens
    from sp2dpo_ray.modeling.student import (
        add_adapter,
        find_student,
        load_model,
        load_tokenizer,
        trainable,
    )
    from sp2dpo_ray.train.loss import Loss
    from sp2dpo_ray.train.metrics import means
    from sp2dpo_ray.train.step import Computing, accumulate
    from sp2dpo_ray.train.task import Pairs

    layout = switches.get("layout", "shared")
    budget = switches.get("tokens_per_batch", 1024)
    ref = find_student(str(student), None)
    tokenizer, model = load_tokenizer(ref), load_model(ref, "fp32", layout)
    how = Computing(tokenizer.pad_token_id, torch.device("cpu"), budget, layout)
    score = Scorer(model, 16 << 20)
    start = time.perf_counter()
    encoded = encode_pairs(pairs, tokenizer, Encoding(MAX_LENGTH, MAX_LENGTH - 1))
    logps = torch.empty(2, len(encoded))
    with torch.inference_mode():
        for index in plan_batches(encoded, range(len(encoded)), budget, layout):
            batch = collate(encoded, index, how.pad_id, layout)
            logps[:, index] = score(batch).view(2, -1)
    reference = time.perf_counter() - start

    lora = LoraSection(**LORA | {"dropout": switches.get("dropout", LORA["dropout"])})
    model = add_adapter(model, lora, seed=0, fused=switches.get("fused", True)).train()
    weights, score = trainable(model), Scorer(model, 16 << 20)
    optimizer = torch.optim.AdamW(weights, lr=RATE, weight_decay=0.0)
    ready = Pairs(encoded, logps[0], logps[1], torch.full((len(encoded),), BETA))
    losses, loss = [], Loss("logistic")
    start = time.perf_counter()
    for begin in range(0, len(encoded), PAIRS_PER_STEP):
        mine = list(range(begin, min(begin + PAIRS_PER_STEP, len(encoded))))
        sums = accumulate(score, ready, mine, how=how, loss=loss)
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(means(sums)["loss"])
    training = time.perf_counter() - start
    tokens = sum(row_tokens(pair, layout) for pair in encoded)
    return {"reference": reference, "training": training, "tokens": 2 * tokens,
            "first": losses[0], "loss": statistics.fmean(losses)}  # fmt: skip


def trl(pairs: list[Any], student: Path, *, tuned: bool, dropout: float = 0.05) -> dict[str, Any]:
    import logging
    import warnings

    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as hf
    from trl import DPOConfig, DPOTrainer

    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    hf.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(student)
    model = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32)
    start = time.perf_counter()
    rows = [
        {
            "prompt": pair.prompt,
            "chosen": [{"role": "assistant", "content": pair.chosen}],
            "rejected": [{"role": "assistant", "content": pair.rejected}],
            "length": sum(len(tokenizer(text)["input_ids"]) for text in texts(pair)),
        }
        for pair in pairs
    ]
    options: dict[str, Any] = {}
    if tuned:
        options = {
            "gradient_checkpointing": False,
            "precompute_ref_log_probs": True,
            "precompute_ref_batch_size": 8,
            "train_sampling_strategy": "group_by_length",
            "remove_unused_columns": False,  # or the lengths are gone before they are used
        }
    with tempfile.TemporaryDirectory() as output:
        trainer = DPOTrainer(
            model=model, processing_class=tokenizer, train_dataset=Dataset.from_list(rows),
            peft_config=LoraConfig(
                r=LORA["r"], lora_alpha=LORA["alpha"], lora_dropout=dropout,
                target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj",
                                "down_proj"], task_type="CAUSAL_LM",
            ),
            args=DPOConfig(
                output_dir=output, beta=BETA, bf16=False, use_cpu=True, max_length=MAX_LENGTH,
                per_device_train_batch_size=8, gradient_accumulation_steps=PAIRS_PER_STEP // 8,
                num_train_epochs=1, learning_rate=RATE, lr_scheduler_type="constant",
                report_to=[], save_strategy="no", disable_tqdm=True, logging_steps=1, **options,
            ),
        )  # fmt: skip
        reference = time.perf_counter() - start
        start = time.perf_counter()
        trainer.train()
        training = time.perf_counter() - start
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return {
        "reference": reference,
        "training": training,
        "tokens": trainer.state.num_input_tokens_seen,
        "first": losses[0],
        "loss": statistics.fmean(losses),
    }


def texts(pair: Any) -> tuple[str, str, str]:
    return pair.prompt_text, pair.chosen, pair.rejected


def _with(**switches: Any) -> Any:
    return lambda pairs, student: engine(pairs, student, **switches)


CONTESTANTS: dict[str, Any] = {
    "TRL 1.16 default": lambda pairs, student: trl(pairs, student, tuned=False),
    "TRL 1.16 tuned": lambda pairs, student: trl(pairs, student, tuned=True),
    "ours": _with(),
    "ours, plain layout": _with(layout="plain"),
    "ours, PEFT's LoRA": _with(fused=False),
    "ours, plain layout, PEFT's LoRA": _with(layout="plain", fused=False),
}

if __name__ == "__main__":
    main()
