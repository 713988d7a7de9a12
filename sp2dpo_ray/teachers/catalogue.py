"""Which provider makes which teacher; a provider is a row here and a file beside."""

from __future__ import annotations

import importlib
from typing import Any

from sp2dpo_ray.config import DecodingSection, TeacherSection
from sp2dpo_ray.errors import ConfigError
from sp2dpo_ray.teachers.base import Teacher
from sp2dpo_ray.teachers.settings import Settings

# imported on demand: a machine needs only the SDKs of the teachers that it asks
PROVIDERS: dict[str, str] = {
    "dashscope": "sp2dpo_ray.teachers.dashscope:DashScopeTeacher",
    "gemini": "sp2dpo_ray.teachers.gemini:GeminiTeacher",
    "offline": "sp2dpo_ray.teachers.offline:OfflineTeacher",
    "openai": "sp2dpo_ray.teachers.openai_compatible:OpenAITeacher",
    "predictor": "sp2dpo_ray.distill.teacher:PredictorTeacher",
    "scripted": "sp2dpo_ray.teachers.scripted:ScriptedTeacher",
    "transformers": "sp2dpo_ray.hosted.transformers_model:TransformersTeacher",
    "vllm": "sp2dpo_ray.teachers.vllm:",  # `annotate.engine` asks it
}

# which extra brings a provider's packages; else `annotate`
EXTRAS = {"predictor": "distill", "transformers": "local"}

# providers whose requests carry decoding settings: the module has a function `settings_of`
DECODING = ("dashscope", "gemini", "openai", "transformers", "vllm")


def settings_of(teacher: TeacherSection, decoding: DecodingSection) -> Settings:
    """What of the decoding settings this teacher's requests carry; needs no key."""
    if teacher.provider not in DECODING:
        return Settings()
    module = _module(teacher)
    settings: Settings = module.settings_of(teacher, decoding)
    return settings


def _module(teacher: TeacherSection) -> Any:
    place = PROVIDERS[teacher.provider].partition(":")[0]
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"teachers: {teacher.name} needs the package {error.name!r}; "
            f"run: pip install 'sp2dpo-ray[{EXTRAS.get(teacher.provider, 'annotate')}]'"
        ) from error


def make_teacher(teacher: TeacherSection, decoding: DecodingSection) -> Teacher:
    """The teacher of one configuration section, ready to be asked.

    Raises ConfigError for a missing SDK, a missing key or options that the provider refuses.
    """
    if teacher.on_engine:
        raise ConfigError(
            f"teachers: {teacher.name}: a vllm teacher is asked by `annotate` alone; a vLLM server "
            "is an openai teacher with base_url"
        )
    factory = getattr(_module(teacher), PROVIDERS[teacher.provider].partition(":")[2])
    try:
        made: Teacher = factory(teacher, decoding)
    except (TypeError, ValueError) as error:  # the SDK's own check of the options
        raise ConfigError(f"teachers: {teacher.name}: options are refused: {error}") from None
    return made
