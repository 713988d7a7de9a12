"""The student of a world: a tiny language model, taught by example and sampled from.

In: prompts and responses as tokens. Out: a model, log-probabilities of pairs, samples. Invariant:
log-probabilities and losses come from the training step that real students use.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from sp2dpo_ray.lab.world import (
    END,
    LENGTH,
    LONGEST,
    PAD,
    TEACHING,
    VOCABULARY,
    Ids,
    WorldPair,
    draw_prompt,
    respond,
)
from sp2dpo_ray.modeling.encode import EncodedPair
from sp2dpo_ray.modeling.forward import Scorer
from sp2dpo_ray.modeling.layout import PLAIN
from sp2dpo_ray.train.step import Computing, pair_logps
from sp2dpo_ray.train.task import Pairs

HIDDEN, LAYERS, HEADS = 64, 2, 4
TEACH_STEPS, TEACH_BATCH, TEACH_RATE = 700, 64, 3e-3
HOW = Computing(PAD, torch.device("cpu"), tokens_per_batch=4096, layout=PLAIN)


def new_student() -> Any:
    """A model that knows nothing."""
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCABULARY,
            hidden_size=HIDDEN,
            intermediate_size=3 * HIDDEN,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS,
            head_dim=HIDDEN // HEADS,
            max_position_embeddings=64,
            tie_word_embeddings=True,
            pad_token_id=PAD,
            eos_token_id=END,
        )
    )


def taught_student(seed: int, steps: int = TEACH_STEPS) -> Any:
    """A model that answers as its teacher does: right in about every second digit."""
    torch.manual_seed(seed)
    model = new_student()
    draw = np.random.default_rng([seed, 1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=TEACH_RATE)
    pace = torch.optim.lr_scheduler.OneCycleLR(optimizer, TEACH_RATE, steps)
    for _ in range(steps):
        prompts = [draw_prompt(draw) for _ in range(TEACH_BATCH)]
        rows = torch.full((TEACH_BATCH, LENGTH + 2 + LONGEST), PAD)
        for row, prompt in zip(rows, prompts, strict=True):
            text = np.concatenate([prompt, respond(prompt, TEACHING, draw)])
            row[: len(text)] = torch.from_numpy(text)
        logits = model(input_ids=rows, use_cache=False).logits
        targets = rows.masked_fill(rows == PAD, -100)[:, LENGTH + 2 :]
        loss = F.cross_entropy(logits[:, LENGTH + 1 : -1].flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        pace.step()
    return model.eval()


@torch.no_grad()
def encoded(model: Any, pairs: Sequence[WorldPair], ids: list[str]) -> Pairs:
    """The pairs as the training step takes them, with this model's log-probabilities as the
    reference and beta 1."""
    tokens = [
        EncodedPair(name, pair.prompt, pair.chosen, pair.rejected)
        for name, pair in zip(ids, pairs, strict=True)
    ]
    nothing = torch.zeros(len(tokens))
    plain = Pairs(tokens, nothing, nothing, torch.ones(len(tokens)))
    logps = scored(model, plain)
    return Pairs(tokens, logps[0], logps[1], torch.ones(len(tokens)))


@torch.no_grad()
def scored(model: Any, pairs: Pairs) -> Tensor:
    """Log-probabilities of chosen and rejected responses, in the order of the pairs; (2, N)."""
    scorer, found = Scorer(model), torch.zeros(2, len(pairs))
    for index in HOW.batches(pairs, range(len(pairs))):
        logps = pair_logps(scorer, pairs, index, HOW)
        found[:, index] = torch.stack([logps.chosen, logps.rejected]).float()
    return found


@torch.no_grad()
def sample(model: Any, prompts: Sequence[Ids], copies: int, seed: int) -> list[list[Ids]]:
    """Responses at temperature 1, END included where it came; for each prompt so many copies."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.from_numpy(np.repeat(np.stack(prompts), copies, axis=0)).long()
    ended = torch.zeros(len(rows), dtype=torch.bool)
    written: list[Tensor] = []
    cache, new = None, rows
    while len(written) < LONGEST and not bool(ended.all()):
        found = model(input_ids=new, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = found.past_key_values
        following = torch.multinomial(found.logits[:, -1].softmax(-1), 1, generator=generator)
        written.append(following[:, 0].masked_fill(ended, PAD))
        ended |= written[-1] == END
        new = written[-1][:, None]
    answers = [row[row != PAD].astype(np.int32) for row in torch.stack(written, dim=1).numpy()]
    return [answers[i : i + copies] for i in range(0, len(answers), copies)]
