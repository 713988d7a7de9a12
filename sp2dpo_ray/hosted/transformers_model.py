"""Provider `transformers`: a language model in this very process, held to the answer's schema.

In: a `Call`. Out: a `Reply`. For machines without a GPU, for small models and for tests; vLLM
answers many times faster where there is a GPU. Invariant: an answer is drawn from the call's own
seed, and every answer that ends is valid.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sp2dpo_ray.config import DecodingSection, TeacherSection
from sp2dpo_ray.config.section import Section
from sp2dpo_ray.core.annotation import Outcome
from sp2dpo_ray.core.calls import Call
from sp2dpo_ray.core.costs import Usage
from sp2dpo_ray.core.hashing import sha256_hex
from sp2dpo_ray.errors import ConfigError
from sp2dpo_ray.hosted.constrained import ConstrainedDraw, Grammar, encode, generate
from sp2dpo_ray.teachers.base import Reply
from sp2dpo_ray.teachers.micro_batching import MicroBatcher
from sp2dpo_ray.teachers.settings import Settings, in_words_of, options_of

NAMES = {
    "temperature": "temperature",
    "top_p": "top_p",
    "max_output_tokens": "max_new_tokens",
    "seed": "seed",
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Options(Section):
    """What can change an answer, and so is a part of every call's key."""

    revision: str | None = None
    """Commit of a model of the hub."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """In bf16 the last bits of a row depend on its neighbours, and so may its answer."""


def settings_of(teacher: TeacherSection, decoding: DecodingSection) -> Settings:
    """What of Table 6 decides its answers."""
    return in_words_of(NAMES, decoding, {})


class TransformersTeacher:
    def __init__(self, teacher: TeacherSection, decoding: DecodingSection) -> None:
        options = options_of(teacher, Options)
        self.settings = settings_of(teacher, decoding)
        self._sent = self.settings.sent
        try:
            self._tokenizer, self._model = _load(teacher.model, options)
        except OSError as error:  # no such folder, no such id, no network
            raise ConfigError(f"teachers: {teacher.name}: {error}") from error
        if self._tokenizer.chat_template is None:
            raise ConfigError(
                f"teachers: {teacher.name}: {teacher.model} has no chat template; take an "
                "instruction-tuned model"
            )
        self._served = f"{teacher.model}@{options.revision}" if options.revision else teacher.model
        self._grammar = Grammar(self._tokenizer, self._model)
        self._batcher = MicroBatcher(self._answer, teacher.engine.rows)

    async def ask(self, call: Call) -> Reply:
        return await self._batcher.ask(call)

    async def close(self) -> None:
        """Nothing to release."""

    def _answer(self, calls: list[Call]) -> list[Reply]:
        batch = encode(self._tokenizer, [call.messages for call in calls]).to(self._model.device)
        told, most = batch["attention_mask"].sum(-1).tolist(), self._sent["max_new_tokens"]
        room = getattr(self._model.config, "max_position_embeddings", None)
        if room is not None and batch["input_ids"].shape[1] + most > room:
            return self._apart(calls, told, room - most)
        draw = ConstrainedDraw(
            self._grammar, [self._seed(call) for call in calls], self._sent["temperature"],
            self._sent["top_p"],
        )  # fmt: skip
        made = generate(self._model, self._tokenizer, self._grammar, batch, draw, most)
        return [
            Reply(
                Outcome.OK if ended else Outcome.TRUNCATED,
                text=text,
                detail="" if ended else f"no end within {most} tokens",
                served_model=self._served,
                usage=Usage(prompt, count),
            )
            for (text, count, ended), prompt in zip(made, told, strict=True)
        ]

    def _apart(self, calls: list[Call], told: list[int], most: int) -> list[Reply]:
        """Those that do not fit are told so; the others are answered without them."""
        fits = [count <= most for count in told]
        answered = iter(self._answer([c for c, fit in zip(calls, fits, strict=True) if fit])
                        if any(fits) else [])  # fmt: skip
        return [
            next(answered) if fit
            else Reply(Outcome.TRUNCATED, detail=f"a prompt of {count} tokens, {most} fit")
            for fit, count in zip(fits, told, strict=True)
        ]  # fmt: skip

    def _seed(self, call: Call) -> int:
        return int(sha256_hex([self._sent.get("seed"), call.key])[:12], 16)


def _load(model: str, options: Options) -> tuple[Any, Any]:
    tokenizer = AutoTokenizer.from_pretrained(model, revision=options.revision)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        model, revision=options.revision, dtype=DTYPES[options.precision], use_safetensors=True,
        trust_remote_code=False,
    )  # fmt: skip
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return tokenizer, loaded.to(device).requires_grad_(False).eval()
