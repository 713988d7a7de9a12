"""The forward pass that DPO needs: summed log-probabilities of the responses in a batch.

In: a causal language model (with or without adapters) and a `Batch`. Out: (2P,) float32. Invariant:
the vocabulary head runs on the positions that predict response tokens, and on no others.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sp2dpo_ray.errors import TrainingError
from sp2dpo_ray.modeling.encode import Batch
from sp2dpo_ray.objectives.logps import sum_by_row, token_logps

PROBE_TOLERANCE = 1e-2  # in nats a token; bf16 rounds logits to about this


def response_logps(model: Any, batch: Batch) -> Tensor:
    """log pi(response | prompt) of each row, summed over its tokens; (2P,)."""
    causal = _causal(model)
    hidden_RTH = causal.get_decoder()(
        input_ids=batch.ids_RT, attention_mask=batch.mask_RT, use_cache=False
    ).last_hidden_state
    predicted_RT = batch.response_RT[:, 1:]
    row_M = predicted_RT.nonzero()[:, 0]
    logits_MV = _head(causal, hidden_RTH[:, :-1][predicted_RT])
    targets_M = batch.ids_RT[:, 1:][predicted_RT]
    return sum_by_row(token_logps(logits_MV, targets_M), row_M, len(batch.ids_RT))


def _causal(model: Any) -> Any:
    """The transformers model itself; adapters are injected into its layers."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _head(causal: Any, hidden_MH: Tensor) -> Tensor:
    logits: Tensor = causal.get_output_embeddings()(hidden_MH)
    softcap = getattr(causal.config.get_text_config(), "final_logit_softcapping", None)
    return logits if softcap is None else torch.tanh(logits / softcap) * softcap


@torch.no_grad()
def check_forward(model: Any, batch: Batch) -> None:
    """Hold `response_logps` against the model's own forward pass once; some architectures scale
    or shift their logits after the head, and those must be refused rather than trained wrongly."""
    causal = _causal(model)
    full = causal(input_ids=batch.ids_RT, attention_mask=batch.mask_RT).logits[:, :-1]
    predicted = batch.response_RT[:, 1:]
    tokens = token_logps(full[predicted], batch.ids_RT[:, 1:][predicted])
    rows = predicted.nonzero()[:, 0]
    expected = sum_by_row(tokens, rows, len(batch.ids_RT))
    distance = (response_logps(model, batch) - expected).abs() / predicted.sum(dim=1).clamp(min=1)
    if not bool((distance <= PROBE_TOLERANCE).all()):
        raise TrainingError(
            f"student.model: {type(causal).__name__} changes its logits after the vocabulary head "
            f"(log-probabilities differ by {float(distance.max()):.3g} a token); "
            "this architecture is not supported"
        )
