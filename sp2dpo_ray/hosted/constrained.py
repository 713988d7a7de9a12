"""Generation that can only write an answer: a grammar masks the logits, each row draws by itself.

In: a tokenizer, a model, chats. Out: texts that the strict reader accepts. Invariant: which random
numbers a row gets is its own affair, so neither its neighbours nor their number change them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import xgrammar as xgr
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from sp2dpo_ray.core.annotation import ANSWER_SCHEMA
from sp2dpo_ray.core.prompts import Message


class Grammar:
    """ANSWER_SCHEMA compiled for the tokenizer of a model; made once, used by every batch.

    Without free whitespace the language is finite: 113 bytes at most, so as many tokens and the end
    always suffice.
    """

    def __init__(self, tokenizer: Any, model: Any) -> None:
        ends = model.generation_config.eos_token_id or tokenizer.eos_token_id
        self.ends = list(ends) if isinstance(ends, list | tuple) else [ends]
        # of the logits: tokens that only padding adds to a vocabulary must be masked, too
        self.width = int(model.get_output_embeddings().weight.shape[0])
        info = xgr.TokenizerInfo.from_huggingface(
            tokenizer, vocab_size=self.width, stop_token_ids=self.ends
        )
        compiler = xgr.GrammarCompiler(info, max_threads=1)
        self.compiled = compiler.compile_json_schema(ANSWER_SCHEMA, any_whitespace=False)


class ConstrainedDraw(LogitsProcessor):
    """Masks, then draws each row with its own generator; for one `generate` without sampling.

    temperature 0 takes the likeliest allowed token. One uniform number a row and step.
    """

    def __init__(
        self, grammar: Grammar, seeds: Sequence[int], temperature: float, top_p: float
    ) -> None:
        self._matchers = [xgr.GrammarMatcher(grammar.compiled) for _ in seeds]
        self._mask = xgr.allocate_token_bitmask(len(seeds), grammar.width)
        # on the CPU, so that a row draws the same on every machine
        self._draws = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._temperature, self._top_p, self._started = temperature, top_p, False

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self._started:
            for matcher, token in zip(self._matchers, input_ids[:, -1].tolist(), strict=True):
                if not matcher.is_terminated() and not matcher.accept_token(token):
                    raise RuntimeError(f"token {token} breaks the grammar that masked it")
        self._started = True
        live = [row for row, matcher in enumerate(self._matchers) if not matcher.is_terminated()]
        for row in live:
            self._matchers[row].fill_next_token_bitmask(self._mask, row)
        scores = scores.float().clone()
        # plain torch: the kernels of the other backends are worth it for large batches alone
        xgr.apply_token_bitmask_inplace(
            scores, self._mask.to(scores.device), backend="torch_native"
        )
        return self._pick(scores, live) if self._temperature > 0 else scores

    def _pick(self, scores: Tensor, live: list[int]) -> Tensor:
        """0 for each row's drawn token, minus infinity for all others."""
        allowed = torch.isfinite(scores).any(0).nonzero()[:, 0]  # few of a vocabulary of 150,000
        share = torch.softmax(scores[:, allowed].double() / self._temperature, -1)
        share, order = share.sort(dim=-1, descending=True, stable=True)
        before = share.cumsum(-1) - share
        share = share.masked_fill(before >= self._top_p, 0)  # the nucleus; the first always stays
        total = share.cumsum(-1)
        drawn = torch.zeros(len(share), 1, dtype=torch.float64)
        for row in live:
            drawn[row] = torch.rand(1, generator=self._draws[row], dtype=torch.float64)
        place = torch.searchsorted(total, drawn.to(total.device) * total[:, -1:], right=True)
        place = torch.minimum(place, (share > 0).sum(-1, keepdim=True) - 1)
        chosen = allowed[order.gather(-1, place)]
        return torch.full_like(scores, -torch.inf).scatter_(-1, chosen, 0.0)


def encode(tokenizer: Any, chats: Sequence[list[Message]]) -> Any:
    """The chats in the model's template, padded on the left."""
    texts = [
        tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        for chat in chats
    ]
    return tokenizer(
        texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False
    )


@torch.inference_mode()
def generate(
    model: Any, tokenizer: Any, grammar: Grammar, batch: Any, draw: ConstrainedDraw, most: int
) -> list[tuple[str, int, bool]]:
    """Text, tokens and whether it ended, of each row; `most` tokens, the end among them."""
    ids = model.generate(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"],
        logits_processor=LogitsProcessorList([draw]), max_new_tokens=most,
        do_sample=False, temperature=None, top_p=None, top_k=None, repetition_penalty=1.0,
        eos_token_id=grammar.ends, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    answers = []
    for row in ids[:, batch["input_ids"].shape[1] :].tolist():
        end = next((place for place, token in enumerate(row) if token in grammar.ends), None)
        text = tokenizer.decode(row[:end], clean_up_tokenization_spaces=False)
        answers.append((text, len(row[:end]) + (end is not None), end is not None))
    return answers
