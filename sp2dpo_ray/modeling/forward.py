"""The forward pass that DPO needs: summed log-probabilities of the responses in a batch.

In: a causal language model (with or without adapters) and a `Batch`. Out: (2P,) float32. Invariant:
the vocabulary head runs on the positions that predict response tokens, and on no others.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sp2dpo_ray.errors import TrainingError
from sp2dpo_ray.modeling.attention import SHARING, attention
from sp2dpo_ray.modeling.head import head_logps
from sp2dpo_ray.modeling.layout import PLAIN, Batch
from sp2dpo_ray.objectives.logps import sum_by_row, token_logps

PROBE_TOLERANCE = 1e-2  # in nats a token; bf16 rounds logits to about this
PROBE_NOISE = 0.15  # nats of one token in 16 bits: logits of 16 to 32 have steps of 0.125
HEAD_BYTES = 64 << 20


def response_logps(model: Any, batch: Batch, *, head_bytes: int = HEAD_BYTES) -> Tensor:
    """log pi(response | prompt) of each row, summed over its tokens; (2P,).

    head_bytes: what the logits of one piece of the response tokens may take.
    """
    return sum_by_row(_token_logps(model, batch, head_bytes), batch.row_M, batch.num_rows)


def unsure_logps(model: Any, batch: Batch, *, head_bytes: int = HEAD_BYTES) -> Tensor:
    """The same, and beside it of the tokens whose probability is below their response's mean: their
    sum, and how many they are; (3, 2P). Which tokens count is not differentiated (ConfPO)."""
    logps_M, rows = _token_logps(model, batch, head_bytes), batch.num_rows
    probability = logps_M.detach().exp()
    length = torch.bincount(batch.row_M, minlength=rows).clamp(min=1)
    mean = sum_by_row(probability, batch.row_M, rows) / length
    unsure = (probability < mean[batch.row_M]).to(logps_M)
    sums = (logps_M, unsure * logps_M, unsure)
    return torch.stack([sum_by_row(each, batch.row_M, rows) for each in sums])


def _token_logps(model: Any, batch: Batch, head_bytes: int) -> Tensor:
    """log pi of each response token; (M,)."""
    causal = base_of(model)
    hidden_RTH = _decode(causal, batch)
    hidden_MH = hidden_RTH.flatten(0, 1)[batch.source_M]
    embeddings = causal.get_output_embeddings()
    return head_logps(
        lambda hidden: _logits(causal, embeddings, hidden),
        hidden_MH,
        batch.target_M,
        vocabulary=embeddings.weight.shape[0],
        frozen=not any(weight.requires_grad for weight in embeddings.parameters()),
        budget=head_bytes,
    )


class Scorer(nn.Module):
    """`response_logps` as a module: what shards a student's weights can then gather those that lie
    outside its layers around the whole pass, the head included.

    autocast: the type that matrix products are computed in, where weights are kept more exactly.
    unsure: give `unsure_logps`.
    """

    def __init__(
        self,
        model: Any,
        head_bytes: int = HEAD_BYTES,
        autocast: torch.dtype | None = None,
        *,
        unsure: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self._head_bytes = head_bytes
        self._autocast = autocast
        self._logps = unsure_logps if unsure else response_logps

    def forward(self, batch: Batch) -> Tensor:
        with torch.autocast(batch.ids_RT.device.type, self._autocast, bool(self._autocast)):
            return self._logps(self.model, batch, head_bytes=self._head_bytes)


def _decode(causal: Any, batch: Batch) -> Tensor:
    shared = causal.config._attn_implementation in SHARING
    if shared != bool(batch.segments):  # the other attention would not notice, and be wrong
        raise ValueError(
            f"the model attends for shared prompts: {shared}; the batch does not agree"
        )
    inputs: dict[str, Any] = {"input_ids": batch.ids_RT, "use_cache": False}
    if batch.segments:
        inputs |= {"position_ids": batch.position_RT, "segments": batch.segments}
    else:
        inputs["attention_mask"] = batch.mask_RT
    hidden: Tensor = causal.get_decoder()(**inputs).last_hidden_state
    return hidden


def base_of(model: Any) -> Any:
    """The transformers model itself; adapters are injected into its layers."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _logits(causal: Any, embeddings: Any, hidden_MH: Tensor) -> Tensor:
    # not a call of the module: what shares out weights gathers them at each call, and workers cut
    # their tokens into different numbers of pieces
    plain = type(embeddings) is nn.Linear
    logits: Tensor = (
        F.linear(hidden_MH, embeddings.weight, embeddings.bias) if plain else embeddings(hidden_MH)
    )
    softcap = getattr(causal.config.get_text_config(), "final_logit_softcapping", None)
    return logits if softcap is None else torch.tanh(logits / softcap) * softcap


@torch.no_grad()
def check_forward(model: Any, batch: Batch, plain: Batch) -> None:
    """Hold `response_logps` against the model's own forward pass once; some architectures scale
    or shift their logits after the head, or attend in ways of their own, and those must be refused
    rather than trained wrongly. plain: the same pairs in the plain layout."""
    causal = base_of(model)
    with attention(causal, PLAIN):
        full = causal(input_ids=plain.ids_RT, attention_mask=plain.mask_RT).logits
    tokens = token_logps(full.flatten(0, 1)[plain.source_M], plain.target_M)
    expected = sum_by_row(tokens, plain.row_M, plain.num_rows)
    length = torch.bincount(plain.row_M, minlength=plain.num_rows).clamp(min=1)
    distance = (response_logps(model, batch) - expected).abs() / length
    allowed = PROBE_TOLERANCE + (full.element_size() == 2) * PROBE_NOISE / length.sqrt()
    if not bool((distance <= allowed).all()):
        raise TrainingError(
            f"student.model: {type(causal).__name__} changes its logits after the vocabulary head, "
            f"or its attention, in a way of its own (log-probabilities differ by "
            f"{float(distance.max()):.3g} a token); this architecture is not supported"
            + ("; train.layout: plain may be" if batch.segments else "")
        )
