"""What vLLM is told of a self-hosted teacher, and whether this cluster can run it at all.

In: a teacher's section. Out: the configuration of Ray Data's vLLM stage. Invariant: a cluster that
can never start the engine is refused with what it has; Ray would wait for ever without a word.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import ray

from sp2dpo_ray.config import TeacherSection
from sp2dpo_ray.errors import ConfigError
from sp2dpo_ray.room import grows, room
from sp2dpo_ray.teachers.settings import options_of
from sp2dpo_ray.teachers.vllm import Options

INSTALL = "pip install 'ray[llm]'"
LABEL = "accelerator_type:"  # what Ray puts before the kind of a node's GPUs, among its resources


def engine_config(section: TeacherSection, template: str | None = None) -> Any:
    """The configuration of Ray Data's vLLM stage; checked by Ray, needs no vLLM.

    template: of chats; None: the one that the newest files of the model have.
    """
    from ray.data.llm import ChatTemplateStageConfig, vLLMEngineProcessorConfig

    options, engine = options_of(section, Options), section.engine
    engine_options = {
        "revision": options.revision,
        "dtype": options.dtype,
        "quantization": options.quantization,
        "max_model_len": options.max_model_len,
    }
    return vLLMEngineProcessorConfig(
        model_source=section.model,
        engine_kwargs={
            "tensor_parallel_size": engine.tensor_parallel,
            "pipeline_parallel_size": engine.pipeline_parallel,
            # the rubric stands first in every prompt, so it is computed once
            "enable_prefix_caching": True,
            "trust_remote_code": False,
            **{name: value for name, value in engine_options.items() if value is not None},
        },
        concurrency=(engine.replicas, engine.replicas),  # one number would begin with one
        batch_size=engine.rows,
        accelerator_type=engine.accelerator,
        should_continue_on_error=True,  # one call that does not fit is one row
        chat_template_stage=ChatTemplateStageConfig(
            chat_template=template, chat_template_kwargs=options.chat_template or None
        ),
        tokenize_stage=False,
        detokenize_stage=False,
    )


def pinned_template(section: TeacherSection) -> str | None:
    """The chat template of the revision; None where none is given.

    Ray's template stage loads a model's newest files, whichever revision the engine has.
    """
    revision = options_of(section, Options).revision
    if revision is None:
        return None
    from sp2dpo_ray.modeling.chat_template import template_of  # transformers come with vLLM

    return template_of(section.model, revision)


def check_machine(section: TeacherSection) -> None:
    """vLLM where the GPUs are, GPUs enough, and of the kind that is asked for."""
    present = room([{"GPU": 1.0}] * section.engine.gpus)
    gpus = int(present.get("GPU", 0))
    where = ray.remote(num_gpus=1)(_has_vllm).remote() if gpus else None
    if not (ray.get(where) if where is not None else _has_vllm()):
        raise ConfigError(
            f"teachers: {section.name}: vLLM is not installed; on every GPU node and here: "
            f"{INSTALL}"
        )
    if gpus < section.engine.gpus:
        raise ConfigError(
            f"teachers: {section.name}: {section.engine.gpus} GPUs are needed (engine: replicas x "
            f"tensor_parallel x pipeline_parallel), this cluster has {gpus}"
        )
    if not grows():  # a node with it may still come
        check_accelerator(section, present)


def check_accelerator(section: TeacherSection, present: dict[str, float]) -> None:
    """A node has the label of `engine.accelerator`; present: the cluster's resources."""
    wanted = section.engine.accelerator
    there = sorted(name.removeprefix(LABEL) for name in present if name.startswith(LABEL))
    if wanted is not None and wanted not in there:
        raise ConfigError(
            f"teachers: {section.name}: engine.accelerator: no node has the label {wanted}, and "
            f"Ray would wait for one; this cluster's are {there}; take one of them, or leave "
            "engine.accelerator out"
        )


def _has_vllm() -> bool:
    return find_spec("vllm") is not None
