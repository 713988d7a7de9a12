"""How time and memory of the training step grow with pairs, lengths, vocabulary and batch.

Run as: python benchmarks/growth.py. This engine alone, on the CPU: a Qwen3-shaped student of 8
layers x 256 with random weights, LoRA r 16, float32, made-up tokens of fixed lengths. Each row
changes one thing of the first and is a process of its own; the median of three equal steps after a
first one is printed.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Case:
    pairs: int = 16
    prompt: int = 128
    response: int = 256
    vocabulary: int = 8_192
    tokens_per_batch: int = 2_048
    layout: str = "shared"
    checkpointing: str = "off"


STEPS = 3
BASE = Case()
CASES = [
    BASE,
    *(replace(BASE, pairs=n) for n in (32, 64)),
    *(replace(BASE, prompt=n) for n in (512, 1_536)),
    *(replace(BASE, response=n) for n in (512, 1_024)),
    *(replace(BASE, vocabulary=n) for n in (32_768, 131_072)),
    *(replace(BASE, tokens_per_batch=n) for n in (4_096, 8_192)),
    replace(BASE, tokens_per_batch=8_192, checkpointing="on"),
    replace(BASE, tokens_per_batch=8_192, layout="plain"),
]


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(measure(Case(**json.loads(sys.argv[1])))))
        return
    names = list(asdict(BASE))
    print("| " + " | ".join(names) + " | s a step | tokens/s | peak MB |")
    print("|---" * (len(names) + 3) + "|")
    for case in CASES:
        command = [sys.executable, __file__, json.dumps(asdict(case))]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        row = json.loads(done.stdout.splitlines()[-1])
        cells = [f"{value:,}" if isinstance(value, int) else value
                 for value in asdict(case).values()]  # fmt: skip
        print(f"| {' | '.join(cells)} | {row['s']:.2f} | {row['tokens']:,.0f} | {row['mb']:,.0f} |",
              flush=True)  # fmt: skip


def measure(case: Case) -> dict[str, Any]:
    from transformers import AutoModelForCausalLM, Qwen3Config

    from sp2dpo_ray.config import LoraSection
    from sp2dpo_ray.modeling.attention import implementation
    from sp2dpo_ray.modeling.encode import EncodedPair
    from sp2dpo_ray.modeling.forward import Scorer
    from sp2dpo_ray.modeling.layout import two_row_tokens
    from sp2dpo_ray.modeling.student import add_adapter
    from sp2dpo_ray.train.loss import Loss
    from sp2dpo_ray.train.memory import decide
    from sp2dpo_ray.train.step import Computing, accumulate
    from sp2dpo_ray.train.task import Pairs

    torch.manual_seed(0)
    shape = Qwen3Config(
        vocab_size=case.vocabulary, hidden_size=256, intermediate_size=768, num_hidden_layers=8,
        num_attention_heads=8, num_key_value_heads=4, head_dim=32, tie_word_embeddings=True,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(shape, attn_implementation=implementation(case.layout))
    model = add_adapter(model.requires_grad_(False), LoraSection(), seed=0).train()
    draw = np.random.default_rng(0)
    encoded = [
        EncodedPair(str(i), *(draw.integers(3, case.vocabulary, n).astype(np.int32)
                              for n in (case.prompt, case.response, case.response)))
        for i in range(case.pairs)
    ]  # fmt: skip
    zeros = torch.zeros(case.pairs)
    pairs = Pairs(encoded, zeros, zeros, zeros + 0.1)
    how = Computing(0, torch.device("cpu"), case.tokens_per_batch, case.layout)
    decide(case.checkpointing, None, model, how.device)
    seconds = []
    for _ in range(1 + STEPS):
        start = time.perf_counter()
        accumulate(Scorer(model), pairs, range(case.pairs), how=how, loss=Loss("logistic"))
        seconds.append(time.perf_counter() - start)
        model.zero_grad()
    return {
        "s": (middle := statistics.median(seconds[1:])),  # the first warms up
        "tokens": sum(map(two_row_tokens, encoded)) / middle,
        "mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
    }


if __name__ == "__main__":
    main()
