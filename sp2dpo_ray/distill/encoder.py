"""The encoder predictor: a transformer reads both responses, heads say what the panel would.

In: texts. Out: the same numbers as the light predictor gives. Each response is read by itself
behind the prompt, and the heads see both readings; the confidence head sees their difference alone
and has no bias, so that exchanging the responses gives one less the confidence, exactly. Invariant:
weights are safetensors, and code never comes with them.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer

from sp2dpo_ray.core.taxonomy import CATEGORIES
from sp2dpo_ray.distill.features import features_of, known_words
from sp2dpo_ray.distill.predictions import Raw
from sp2dpo_ray.distill.texts import Texts
from sp2dpo_ray.errors import ConfigError

BODY, HEADS, SETTINGS, KNOWN = "encoder", "heads.safetensors", "encoder.json", "known.npz"
PAIRS_AT_ONCE = 32
PROMPT_SHARE = 0.4  # of the length, at most, so that a long prompt leaves room for the response
GAPS = ("gap", "low", "high")


@dataclass(frozen=True, slots=True)
class Reading:
    """How texts become tokens. max_length: of prompt and response together."""

    max_length: int


class PairModel(nn.Module):
    """body: any encoder of the hub; width: of its hidden states."""

    def __init__(self, body: nn.Module, width: int) -> None:
        super().__init__()
        self.body = body
        self.confidence = nn.Linear(width, 1, bias=False)
        self.gaps = nn.Sequential(nn.Linear(4 * width, width), nn.GELU(), nn.Linear(width, 3))
        self.category = nn.Linear(4 * width, len(CATEGORIES))

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """batch: rows of the chosen responses, then those of the rejected; (2 N, T)."""
        states = self.body(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1).to(states.dtype)
        pooled = (states * mask).sum(1) / mask.sum(1)
        first, second = pooled.chunk(2)
        return self.heads(first, second)

    def heads(self, first: Tensor, second: Tensor) -> dict[str, Tensor]:
        """Logits: confidence (N,), gaps (N, 3), category (N, 6)."""
        # the category is of the pair, whichever way round
        alike = torch.cat([first + second, (first - second).abs(), first * second,
                           torch.maximum(first, second)], -1)  # fmt: skip
        ordered = torch.cat([first, second, first - second, first * second], -1)
        return {
            "confidence": self.confidence(first - second).squeeze(-1),
            "gaps": self.gaps(ordered),
            "category": self.category(alike),
        }


def new_model(name: str, revision: str | None) -> tuple[PairModel, Any]:
    """A model with fresh heads on a body of the hub or a folder, in training mode, and its
    tokenizer.

    Raises ConfigError where there is none.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
        body = AutoModel.from_pretrained(
            name, revision=revision, use_safetensors=True, trust_remote_code=False,
            dtype=torch.float32,
        )  # fmt: skip
    except (OSError, ValueError) as error:
        raise ConfigError(f"distill.encoder.model: {error}") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    # a body comes in evaluation mode, and would be trained without its dropout
    return PairModel(body, body.config.hidden_size).train(), tokenizer


def check_length(name: str, revision: str | None, max_length: int) -> None:
    """Raises ConfigError where an encoder has no positions for so many tokens."""
    try:
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"distill.encoder.model: {error}") from error
    most = getattr(config, "max_position_embeddings", None)
    if most is not None and "roberta" in config.model_type:
        most -= config.pad_token_id + 1  # its positions begin behind that of padding
    if most is not None and max_length > most:
        raise ConfigError(
            f"distill.encoder.max_length: {max_length} tokens, and {name} has positions for {most}"
        )


def device() -> str:
    """Where a process on its own predicts."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def encode(tokenizer: Any, texts: Texts, reading: Reading) -> dict[str, Tensor]:
    """Prompt and response, each cut at its end, for the chosen responses and then the rejected."""
    most = max(1, int(PROMPT_SHARE * reading.max_length))
    prompts = tokenizer(
        texts.prompt.to_pylist(), add_special_tokens=False, truncation=True, max_length=most
    )["input_ids"]
    rows = []
    for column in (texts.chosen, texts.rejected):
        answers = tokenizer(
            column.to_pylist(), add_special_tokens=False, truncation=True,
            max_length=reading.max_length,
        )["input_ids"]  # fmt: skip
        between = [tokenizer.sep_token_id or tokenizer.eos_token_id]
        rows += [
            (prompt + between + answer)[: reading.max_length]
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), tokenizer.pad_token_id)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = torch.tensor(row)
        mask[place, : len(row)] = 1
    return {"input_ids": ids, "attention_mask": mask}


@dataclass(frozen=True, slots=True)
class EncoderModel:
    """known: marks of the words that training has seen, see `features`."""

    model: PairModel
    tokenizer: Any
    reading: Reading
    known: NDArray[np.bool_]

    @torch.inference_mode()
    def predict(self, texts: Texts, threads: int = 0) -> Raw:
        """One row a pair; threads: of torch, 0 leaves its own."""
        if threads:
            torch.set_num_threads(threads)
        place = next(self.model.parameters()).device
        found: list[dict[str, Tensor]] = []
        for start in range(0, len(texts), PAIRS_AT_ONCE):
            batch = encode(self.tokenizer, texts.slice(start, PAIRS_AT_ONCE), self.reading)
            told = self.model({name: value.to(place) for name, value in batch.items()})
            found.append({name: value.double().cpu() for name, value in told.items()})
        if not found:
            return Raw.nothing()
        whole = {name: torch.cat([row[name] for row in found]) for name in found[0]}
        gaps = torch.sigmoid(whole["gaps"]).numpy()
        unknown = features_of(texts, self.known).unknown.astype(np.float64)
        return Raw(
            torch.softmax(whole["category"], -1).numpy(),
            torch.sigmoid(whole["confidence"]).numpy(),
            *(gaps[:, place] for place in range(len(GAPS))),
            unknown,
        )

    def save(self, folder: Path) -> None:
        self.model.body.save_pretrained(folder / BODY, safe_serialization=True)
        self.tokenizer.save_pretrained(folder / BODY)
        heads = {k: v.cpu().contiguous() for k, v in self.model.state_dict().items()
                 if not k.startswith("body.")}  # fmt: skip
        save_file(heads, folder / HEADS)
        np.savez(folder / KNOWN, known=np.packbits(self.known))
        (folder / SETTINGS).write_text(json.dumps(asdict(self.reading)), encoding="utf-8")


def load(folder: Path) -> EncoderModel:
    """The model of a folder that `save` wrote."""
    model, tokenizer = new_model(str(folder / BODY), None)
    missing, unexpected = model.load_state_dict(load_file(folder / HEADS), strict=False)
    assert not unexpected
    assert all(name.startswith("body.") for name in missing)
    with np.load(folder / KNOWN, allow_pickle=False) as arrays:
        known = np.unpackbits(arrays["known"]).astype(bool)
    reading = Reading(**json.loads((folder / SETTINGS).read_text(encoding="utf-8")))
    return EncoderModel(model.to(device()).eval(), tokenizer, reading, known)


def known_in(texts: Texts) -> NDArray[np.bool_]:
    return known_words(features_of(texts))
