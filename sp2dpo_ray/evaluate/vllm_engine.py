"""The same answers from vLLM on GPUs, through Ray Data's own processor.

In: items, a model. Out: blocks in `generation.SCHEMA`. Invariant: decoding is that of the
configuration, seeds are the questions' own, and a machine without vLLM is told what to install.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import pyarrow as pa
import ray

from sp2dpo_ray.config.evaluate import GenerateSection
from sp2dpo_ray.core.hashing import sha256_hex
from sp2dpo_ray.errors import ConfigError
from sp2dpo_ray.evaluate.items import Item
from sp2dpo_ray.reference.parts import Parts
from sp2dpo_ray.room import room

STOP, LENGTH = "stop", "length"
DTYPES = {"bf16": "bfloat16", "fp32": "float32", "nf4": "bfloat16"}
BATCH = 64


def check_vllm() -> None:
    """Refuse where vLLM is not installed or no GPU is there: the engine would wait for ever."""
    if find_spec("vllm") is None:
        raise ConfigError(
            "generate.engine: vllm is not installed here; pip install 'ray[llm]' on every GPU node "
            "and here, or take generate.engine: transformers"
        )
    if not room([{"GPU": 1.0}]).get("GPU"):
        raise ConfigError(
            "generate.engine: vllm needs a GPU, and this cluster has none; take generate.engine: "
            "transformers"
        )


def sampling_of(options: GenerateSection, item: str, turn: int) -> dict[str, Any]:
    """The parameters of one answer, in vLLM's words."""
    plain = {"temperature": options.temperature, "max_tokens": options.max_new_tokens}
    if options.temperature == 0:
        return plain
    seed = int(sha256_hex(f"{options.seed}:{item}:{turn}")[:12], 16)
    return plain | {"top_p": options.top_p, "seed": seed}


def answer_with_vllm(
    items: Sequence[Item],
    model: str,
    precision: str,
    options: GenerateSection,
    replicas: int,
    parts: Parts,
    schema: pa.Schema,
    *,
    progress: Callable[[int, str], None],
) -> list[pa.Table]:
    """Every item's answers, turn by turn; blocks are kept as they end."""
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    config = vLLMEngineProcessorConfig(
        model_source=model,
        engine_kwargs={
            "dtype": DTYPES[precision],
            "tensor_parallel_size": options.tensor_parallel,
            "enable_prefix_caching": True,
            "trust_remote_code": False,
        },
        concurrency=(replicas, replicas),  # one number would begin with one
        batch_size=BATCH,
    )
    processor = build_processor(
        config,
        preprocess=lambda row: {
            "messages": row["messages"], "sampling_params": row["sampling_params"],
            "item": row["item"],
        },
        postprocess=lambda row: {
            "item": row["item"], "text": row["generated_text"],
            "count": row["num_generated_tokens"],
        },
    )  # fmt: skip
    chats: dict[str, list[dict[str, str]]] = {
        item.id: [{"role": "system", "content": item.system}] if item.system else []
        for item in items
    }
    found: dict[str, tuple[list[str], list[int], list[str]]] = {i.id: ([], [], []) for i in items}
    done: list[pa.Table] = []
    for turn in range(max(len(item.turns) for item in items)):
        rows = []
        for item in items:
            if turn < len(item.turns):
                chats[item.id].append({"role": "user", "content": item.turns[turn]})
                rows.append({"item": item.id, "messages": chats[item.id],
                             "sampling_params": sampling_of(options, item.id, turn)})  # fmt: skip
        last = {item.id for item in items if len(item.turns) == turn + 1}
        for batch in processor(ray.data.from_items(rows)).iter_batches(
            batch_size=BATCH, batch_format="pyarrow"
        ):
            ended = []
            for row in batch.to_pylist():
                texts, counts, ends = found[row["item"]]
                texts.append(row["text"])
                counts.append(row["count"])
                ends.append(LENGTH if row["count"] >= options.max_new_tokens else STOP)
                chats[row["item"]].append({"role": "assistant", "content": row["text"]})
                if row["item"] in last:
                    ended.append(row["item"])
            if ended:
                columns = [list(column) for column in zip(*(found[i] for i in ended), strict=True)]
                block = pa.table([ended, *columns], schema=schema)
                parts.keep(block)
                done.append(block)
                progress(len(ended), "")
    return done
