"""Tiny models with random weights of every architecture that the tests hold."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Qwen3Config,
)

VOCABULARY = 97
COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip

CONFIGS: dict[str, Any] = {
    "qwen3": lambda: Qwen3Config(**COMMON),
    "llama": lambda: LlamaConfig(**COMMON),
    "mistral": lambda: MistralConfig(**COMMON, sliding_window=None),
    "mistral sliding": lambda: MistralConfig(**COMMON, sliding_window=7),
    # two sliding layers before a full one, positions of their own for each kind
    "gemma3": lambda: Gemma3TextConfig(
        **COMMON, sliding_window=7, query_pre_attn_scalar=8,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
    ),
    "qwen3 sliding": lambda: Qwen3Config(
        **COMMON, use_sliding_window=True, sliding_window=5, max_window_layers=1,
    ),
    "tied": lambda: LlamaConfig(**COMMON, tie_word_embeddings=True),
}  # fmt: skip


def make_model(name: str, dtype: torch.dtype = torch.float64, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIGS[name](), attn_implementation="sdpa")
    with torch.no_grad():  # the usual initialisation is so flat that little could go wrong
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.3)
    model = model.to(dtype).requires_grad_(False).eval()
    if dtype == torch.float64:
        for module in model.modules():
            if type(module).__name__.endswith("RMSNorm"):
                module.forward = partial(_norm, module)
    return model


def _norm(module: Any, x: torch.Tensor) -> torch.Tensor:
    """RMSNorm all in float64; transformers' own goes through float32 whatever the model is."""
    gemma = type(module).__name__.startswith("Gemma")
    eps = module.eps if hasattr(module, "eps") else module.variance_epsilon
    normed = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
    return normed * (1.0 + module.weight if gemma else module.weight)
