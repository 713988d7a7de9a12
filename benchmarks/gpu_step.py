"""The training step alone on one GPU, without Ray: this engine against TRL's DPOTrainer.

Run as: python benchmarks/gpu_step.py [--pairs 256] [--shape qwen3-4b|tiny] [--only NAME ...]
Random weights of the shape of Qwen3-4B (36 layers x 2560, 151,936 tokens), LoRA r 16 with dropout
0.05, bf16, max_length 2048; made-up tokens with lengths drawn like UltraFeedback's (prompts of
about 160 tokens, responses of about 250, log-normal). Prints tokens a second, two rows a pair being
counted for everybody, peak memory, and the card's measured rate of bf16 matrix products with the
share of it that each contestant's arithmetic reaches. Where there is no GPU it says so and measures
nothing, unless --shape tiny asks for a run that only shows that the script works.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-4b": {
        "vocab_size": 151_936, "hidden_size": 2560, "intermediate_size": 9728,
        "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8,
        "head_dim": 128, "tie_word_embeddings": True, "max_position_embeddings": 4096,
    },
    "tiny": {
        "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "tie_word_embeddings": True, "max_position_embeddings": 4096,
    },
}  # fmt: skip
MAX_LENGTH, PAIRS_PER_STEP, WARM_UP = 2048, 16, 2
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=256)
    parser.add_argument("--shape", choices=SHAPES, default="qwen3-4b")
    parser.add_argument("--tokens-per-batch", type=int, default=16_384)
    parser.add_argument("--only", nargs="*", default=None)
    chosen = parser.parse_args()
    if not torch.cuda.is_available() and chosen.shape != "tiny":
        print("not measured: no GPU here")
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pairs = make_pairs(chosen.pairs, SHAPES[chosen.shape]["vocab_size"])
    rate = matrix_rate(device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU, no measurement"
    print(f"{name}, torch {torch.__version__}; bf16 products at {rate / 1e12:,.2f} TFLOP/s\n")
    print(
        "| who | tokens/s | s a step | peak GB | share of the product rate |\n|---|---|---|---|---|"
    )
    for who in chosen.only or list(CONTESTANTS):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds, computed = CONTESTANTS[who](chosen, pairs, device)
        peak = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else 0.0
        timed = pairs[WARM_UP * PAIRS_PER_STEP :]
        tokens = sum(2 * len(p[0]) + len(p[1]) + len(p[2]) for p in timed)
        share = arithmetic(chosen.shape, computed, timed) / sum(seconds) / rate
        print(f"| {who} | {tokens / sum(seconds):,.0f} | {statistics.median(seconds):.3f} "
              f"| {peak:.1f} | {share:.2f} |", flush=True)  # fmt: skip


def make_pairs(count: int, vocabulary: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Prompt, chosen, rejected of made-up tokens."""
    draw = np.random.default_rng(0)

    def tokens(mean: float) -> np.ndarray:
        length = int(np.clip(draw.lognormal(np.log(mean), 0.8), 4, MAX_LENGTH // 2 - 1))
        return draw.integers(3, vocabulary, length).astype(np.int32)

    return [(tokens(160), tokens(250), tokens(230)) for _ in range(count)]


def arithmetic(shape: str, computed: int, pairs: list[Any]) -> float:
    """Floating point operations of forward pass and input gradient: 2 + 2 a weight and token, the
    head on response tokens; attention and adapters not counted."""
    s = SHAPES[shape]
    heads = (2 * s["num_attention_heads"] + 2 * s["num_key_value_heads"]) * s["head_dim"]
    layer = s["hidden_size"] * (heads + 3 * s["intermediate_size"])
    responses = sum(len(p[1]) + len(p[2]) for p in pairs)
    head = s["hidden_size"] * s["vocab_size"] * responses
    return 4.0 * (s["num_hidden_layers"] * layer * computed + head)


def matrix_rate(device: torch.device) -> float:
    """Operations a second of large bf16 products on this device."""
    size = 8192 if device.type == "cuda" else 512
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    seconds = []
    for _ in range(10):
        start = clock(device)
        a @ a
        seconds.append(clock(device) - start)
    return 2.0 * size**3 / min(seconds)


def clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def make_model(shape: str, device: torch.device, attention: str) -> Any:
    from transformers import AutoModelForCausalLM, Qwen3Config

    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(
            Qwen3Config(**SHAPES[shape]), attn_implementation=attention, dtype=torch.bfloat16
        ).requires_grad_(False)


def ours(chosen: Any, pairs: list[Any], device: torch.device, layout: str = "shared") -> Any:
    from sp2dpo_ray.config import LoraSection
    from sp2dpo_ray.modeling.attention import implementation
    from sp2dpo_ray.modeling.encode import EncodedPair
    from sp2dpo_ray.modeling.forward import Scorer
    from sp2dpo_ray.modeling.student import add_adapter, trainable
    from sp2dpo_ray.train.loss import Loss
    from sp2dpo_ray.train.memory import decide
    from sp2dpo_ray.train.step import Computing, accumulate, pair_logps
    from sp2dpo_ray.train.task import Pairs

    model = add_adapter(
        make_model(chosen.shape, device, implementation(layout)), LoraSection(), seed=0
    )
    how = Computing(0, device, chosen.tokens_per_batch, layout)
    score = Scorer(model, 256 << 20)
    zeros, beta = torch.zeros(len(pairs)), torch.linspace(0.03, 0.3, len(pairs))
    ready = Pairs([EncodedPair(str(i), *p) for i, p in enumerate(pairs)], zeros, zeros, beta)
    loss, weights = Loss("logistic"), trainable(model.train())
    optimizer = torch.optim.AdamW(weights, lr=5e-6)
    largest = how.batches(ready, range(len(pairs)))[0]
    decide("auto", lambda: pair_logps(score, ready, largest, how), model, device)
    seconds, computed = [], 0
    for begin in range(0, len(pairs), PAIRS_PER_STEP):
        mine, start = list(range(begin, min(begin + PAIRS_PER_STEP, len(pairs)))), clock(device)
        accumulate(score, ready, mine, how=how, loss=loss)
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if begin >= WARM_UP * PAIRS_PER_STEP:
            seconds.append(clock(device) - start)
            computed += sum(how.computed_tokens(ready, i) for i in how.batches(ready, mine))
    return seconds, computed


def trl(chosen: Any, pairs: list[Any], device: torch.device) -> Any:
    """TRL's step on the same tokens, tuned: reference given, no checkpointing, like lengths
    together."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PreTrainedTokenizerFast
    from transformers.utils import logging as hf
    from trl import DPOConfig, DPOTrainer

    hf.set_verbosity_error()
    tokenizer = _any_tokenizer(PreTrainedTokenizerFast)
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c"} for _ in pairs]
    with tempfile.TemporaryDirectory() as output:
        trainer = DPOTrainer(
            model=make_model(chosen.shape, device, "sdpa"), processing_class=tokenizer,
            train_dataset=Dataset.from_list(rows),
            peft_config=LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05, target_modules=TARGETS,
                                   task_type="CAUSAL_LM"),
            args=DPOConfig(output_dir=str(Path(output)), beta=0.1, bf16=device.type == "cuda",
                           use_cpu=device.type == "cpu", max_length=MAX_LENGTH, report_to=[],
                           gradient_checkpointing=False, per_device_train_batch_size=4),
        )  # fmt: skip
    model = trainer.model.train()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=5e-6)
    seconds, computed = [], 0
    for begin in range(0, len(pairs), PAIRS_PER_STEP):
        mine = sorted(pairs[begin : begin + PAIRS_PER_STEP], key=lambda p: -sum(map(len, p)))
        start, timed = clock(device), begin >= WARM_UP * PAIRS_PER_STEP
        for k in range(0, len(mine), 4):
            batch = trainer.data_collator(
                [{"prompt_ids": p[0].tolist(), "chosen_ids": p[1].tolist(),
                  "rejected_ids": p[2].tolist(), "ref_chosen_logps": 0.0,
                  "ref_rejected_logps": 0.0} for p in mine[k : k + 4]]
            )  # fmt: skip
            batch = {name: value.to(device) for name, value in batch.items()}
            trainer.precompute_ref_logps = True
            (trainer.compute_loss(model, batch) * (len(mine[k : k + 4]) / len(mine))).backward()
            computed += batch["input_ids"].numel() if timed else 0
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if timed:
            seconds.append(clock(device) - start)
    return seconds, computed


def _any_tokenizer(kind: Any) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: i for i, word in enumerate(["<pad>", "<eos>", "a", "b", "c"])}
    made = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return kind(tokenizer_object=made, pad_token="<pad>", eos_token="<eos>")


CONTESTANTS: dict[str, Any] = {
    "ours": ours,
    "ours, plain layout": lambda chosen, pairs, device: ours(chosen, pairs, device, "plain"),
    "TRL 1.16 tuned": trl,
}

if __name__ == "__main__":
    main()
