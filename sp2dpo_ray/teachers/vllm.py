"""Provider `vllm`: the offline engine's requests and what its rows mean.

In: a teacher's section, the decoding settings, rows that Ray Data's vLLM stage sends. Out: sampling
parameters, replies. The engine itself runs in `annotate.engine`; nothing here needs vLLM.
Invariant: the answer's schema constrains every request.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from sp2dpo_ray.config import DecodingSection, TeacherSection
from sp2dpo_ray.config.section import Section
from sp2dpo_ray.core.annotation import ANSWER_SCHEMA, Outcome, read_answer
from sp2dpo_ray.core.costs import Usage
from sp2dpo_ray.core.hashing import canonical_json
from sp2dpo_ray.teachers.base import DETAIL_LENGTH, Reply
from sp2dpo_ray.teachers.settings import Settings, in_words_of, options_of

NAMES = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "max_output_tokens": "max_tokens",
    "seed": "seed",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "repetition_penalty": "repetition_penalty",
    "stop": "stop",
}
TOO_LONG = ("maximum model length", "max_model_len", "maximum context length")


class Options(Section):
    """What can change an answer, and so is a part of every call's key."""

    revision: str | None = None
    """Commit of a model of the hub."""
    dtype: str = "auto"
    quantization: str | None = None
    """awq, gptq, fp8, ...: as the model's files are."""
    max_model_len: int | None = Field(None, ge=128)
    """Most tokens of prompt and answer together; the model's own if not given."""
    chat_template: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the chat template, say {enable_thinking: false}."""


def settings_of(teacher: TeacherSection, decoding: DecodingSection) -> Settings:
    """Sampling parameters of every request, the schema among them."""
    options_of(teacher, Options)
    # as text: Arrow would make a struct of a schema, with an entry for every key of every part
    schema = {"structured_outputs": {"json": canonical_json(ANSWER_SCHEMA)}}
    return in_words_of(NAMES, decoding, schema)


def reply_of(row: dict[str, Any], teacher: TeacherSection, decoding: DecodingSection) -> Reply:
    """What a row of the engine says: an answer, or an error of this one call.

    The stage hands on no reason for an answer's end, so an answer counts as cut where it fills its
    room and cannot be read.
    """
    if error := row.get("__inference_error__"):
        fits = not any(words in error for words in TOO_LONG)
        outcome = Outcome.TRANSPORT if fits else Outcome.TRUNCATED
        return Reply(outcome, detail=str(error)[:DETAIL_LENGTH])
    options = options_of(teacher, Options)
    text = row["generated_text"]
    prompt, made = int(row["num_input_tokens"]), int(row["num_generated_tokens"])
    room = options.max_model_len
    full = made >= decoding.max_output_tokens or (room is not None and prompt + made >= room)
    cut = full and read_answer(text).annotation is None
    served = f"{teacher.model}@{options.revision}" if options.revision else teacher.model
    return Reply(
        Outcome.TRUNCATED if cut else Outcome.OK,
        text=text,
        detail=f"no end within {made} tokens" if cut else "",
        served_model=served,
        usage=Usage(prompt, made),
    )
