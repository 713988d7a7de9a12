"""The built-in student: a small Qwen3-architecture model made from the training pairs.

In: training pairs. Out: a folder that loads like any other student. For machines that reach no
model hub: it has the real architecture, tokenizer and chat template machinery, and knows next to
nothing. Invariant: the same pairs and options give the same weights on the same machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from sp2dpo_ray.config import TinySection
from sp2dpo_ray.core.pairs import Pair
from sp2dpo_ray.modeling.encode import EncodedPair, Encoding, encode_pairs

START, END, PAD = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONTEXT = 4096
TEACHING_LENGTH = 256  # tokens of an example that the model is taught on
TEACHING_PROMPT = 96


def make_tiny_student(
    pairs: Sequence[Pair],
    options: TinySection,
    folder: Path,
    progress: Callable[[int, str], None] = lambda steps, note: None,
) -> float | None:
    """Make tokenizer and model from `pairs`, teach the model on chosen responses, save both.

    Returns the mean loss in nats a token over the last tenth of the steps, None without steps.
    """
    tokenizer = _tokenizer(pairs, options.vocabulary)
    torch.manual_seed(options.seed)
    model = Qwen3ForCausalLM(_architecture(options, tokenizer))
    loss = _teach(model, tokenizer, pairs, options, progress)
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    return loss


def _tokenizer(pairs: Sequence[Pair], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE: any text of any alphabet can be encoded."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (text for pair in pairs for text in (pair.prompt_text, pair.chosen, pair.rejected))
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        eos_token=END,
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT,
    )


def _architecture(options: TinySection, tokenizer: PreTrainedTokenizerFast) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=options.hidden,
        intermediate_size=3 * options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        num_key_value_heads=options.heads // 2,
        head_dim=options.hidden // options.heads,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def _teach(
    model: Any,
    tokenizer: Any,
    pairs: Sequence[Pair],
    options: TinySection,
    progress: Callable[[int, str], None],
) -> float | None:
    encoded = encode_pairs(pairs, tokenizer, Encoding(TEACHING_LENGTH, TEACHING_PROMPT))
    draw = torch.Generator().manual_seed(options.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, options.learning_rate, total_steps=max(options.steps, 1), pct_start=0.1
    )
    losses = []
    model.train()
    for _ in range(options.steps):
        chosen = torch.randint(len(encoded), (options.batch,), generator=draw).tolist()
        ids, labels = _examples([encoded[i] for i in chosen], tokenizer.pad_token_id)
        logits = model(input_ids=ids, attention_mask=(ids != tokenizer.pad_token_id).long()).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        progress(1, f"loss {loss.item():.2f} nats a token")
    model.eval()
    last = losses[-max(1, len(losses) // 10) :]
    return sum(last) / len(last) if last else None


def _examples(pairs: list[EncodedPair], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    rows = [np.concatenate([pair.prompt, pair.chosen]) for pair in pairs]
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad_id)
    labels = torch.full((len(rows), width), -100)
    for i, (row, pair) in enumerate(zip(rows, pairs, strict=True)):
        ids[i, : len(row)] = torch.from_numpy(row)
        labels[i, len(pair.prompt) : len(row)] = torch.from_numpy(pair.chosen)
    return ids, labels
