"""A student's answers to a benchmark's questions, on Ray Data with transformers (or vLLM).

In: items, a model. Out: one row an item: answers, tokens, how each ended. Invariant: greedy, or
drawn from a seed of the question's own, so neither batches nor workers change which random numbers
a question gets; finished blocks are kept over an interruption.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch

from sp2dpo_ray.config.evaluate import GenerateSection
from sp2dpo_ray.core.hashing import sha256_hex
from sp2dpo_ray.evaluate.items import Item
from sp2dpo_ray.evaluate.vllm_engine import LENGTH, STOP, answer_with_vllm, check_vllm
from sp2dpo_ray.modeling.student import StudentRef, load_model, load_tokenizer
from sp2dpo_ray.reference.parts import Parts, through_actors

SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),  # the item's id; `Parts` knows blocks by this column
        ("answers", pa.list_(pa.string())),
        ("tokens", pa.list_(pa.int32())),
        ("finish", pa.list_(pa.string())),
    ]
)
QUESTIONS = pa.schema(
    [("prompt_id", pa.string()), ("turns", pa.list_(pa.string())), ("system", pa.string())]
)


@dataclass(frozen=True, slots=True)
class GenerateSpec:
    """What decides an answer, and what it is computed with."""

    student: StudentRef
    options: GenerateSection
    precision: str
    actors: int
    gpus_per_actor: float


class GenerateActor:
    """Callable class for `map_batches`: holds the model, answers blocks of questions."""

    def __init__(self, spec: GenerateSpec) -> None:
        self._spec = spec
        self._device = torch.device("cuda" if spec.gpus_per_actor else "cpu")
        self._tokenizer = load_tokenizer(spec.student)
        self._tokenizer.padding_side = "left"
        self._model = load_model(spec.student, spec.precision).to(self._device)

    @torch.inference_mode()
    def __call__(self, block: pa.Table) -> pa.Table:
        rows = block.to_pylist()
        chats: list[list[dict[str, str]]] = [
            [{"role": "system", "content": row["system"]}] if row["system"] else [] for row in rows
        ]
        found: list[tuple[list[str], list[int], list[str]]] = [([], [], []) for _ in rows]
        for turn in range(max(len(row["turns"]) for row in rows)):
            here = [i for i, row in enumerate(rows) if turn < len(row["turns"])]
            for i in here:
                chats[i].append({"role": "user", "content": rows[i]["turns"][turn]})
            seeds = [f"{self._spec.options.seed}:{rows[i]['prompt_id']}:{turn}" for i in here]
            for i, tokens in zip(here, self._answer([chats[i] for i in here], seeds), strict=True):
                ended = bool(tokens) and tokens[-1] in self._ends
                text = self._tokenizer.decode(tokens, skip_special_tokens=True)
                chats[i].append({"role": "assistant", "content": text})
                for kept, value in zip(
                    found[i], (text, len(tokens), STOP if ended else LENGTH), strict=True
                ):
                    kept.append(value)  # type: ignore[arg-type]
        ids = [row["prompt_id"] for row in rows]
        return pa.table([ids, *map(list, zip(*found, strict=True))], schema=SCHEMA)

    @property
    def _ends(self) -> list[int]:
        ends = self._model.generation_config.eos_token_id or self._tokenizer.eos_token_id
        return list(ends) if isinstance(ends, list | tuple) else [ends]

    def _answer(self, chats: list[list[dict[str, str]]], seeds: list[str]) -> list[list[int]]:
        """Token ids of the answers, the end token included where it came."""
        options = self._spec.options
        prompts = [
            self._tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
            for chat in chats
        ]
        made: list[list[int]] = []
        # of sampled answers each has its own random numbers, so each is drawn by itself
        step = len(prompts) if options.temperature == 0 else 1
        for start in range(0, len(prompts), step):
            batch = self._tokenizer(
                prompts[start : start + step], return_tensors="pt", padding=True,
                add_special_tokens=False,
            ).to(self._device)  # fmt: skip
            sampling: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None}
            if options.temperature:
                torch.manual_seed(int(sha256_hex(seeds[start])[:12], 16))
                sampling = {"do_sample": True, "temperature": options.temperature,
                            "top_p": options.top_p}  # fmt: skip
            ids = self._model.generate(
                **{k: v for k, v in batch.items() if k != "token_type_ids"},
                max_new_tokens=options.max_new_tokens, top_k=None, eos_token_id=self._ends,
                pad_token_id=self._tokenizer.pad_token_id, **sampling,
            )  # fmt: skip
            for row in ids[:, batch["input_ids"].shape[1] :].tolist():
                ends = [place for place, token in enumerate(row) if token in self._ends]
                made.append(row[: ends[0] + 1] if ends else row)
        return made


def generate(
    items: Sequence[Item], spec: GenerateSpec, parts: Parts, *, progress: Callable[[int, str], None]
) -> pa.Table:
    """The answers of every item, in the items' order; SCHEMA."""
    done = parts.read()
    known = set().union(*(block["prompt_id"].to_pylist() for block in done))
    progress(len(known), "from before the interruption" if known else "")
    left = [item for item in items if item.id not in known]
    # answers of like length end together
    left.sort(key=lambda item: (sum(map(len, item.turns)), item.id))
    rows = [{"prompt_id": i.id, "turns": list(i.turns), "system": i.system} for i in left]
    size = spec.options.rows
    blocks = [
        pa.Table.from_pylist(rows[i : i + size], QUESTIONS) for i in range(0, len(rows), size)
    ]
    if spec.options.engine == "vllm" and left:
        check_vllm()
        done += answer_with_vllm(
            left, spec.student.model, spec.precision, spec.options, spec.actors, parts, SCHEMA,
            progress=progress,
        )  # fmt: skip
        blocks = []
    done += through_actors(
        blocks, GenerateActor, spec, parts,
        actors=spec.actors, gpus_per_actor=spec.gpus_per_actor, progress=progress,
    )  # fmt: skip
    table = pa.concat_tables(done)
    place = {name: row for row, name in enumerate(table["prompt_id"].to_pylist())}
    return table.take([place[item.id] for item in items]).combine_chunks()
