"""Which provider makes which teacher; a provider is a row here and a file beside."""

from __future__ import annotations

import importlib

from sp2dpo_ray.config import DecodingSection, TeacherSection
from sp2dpo_ray.errors import ConfigError
from sp2dpo_ray.teachers.base import Teacher

# imported on demand: a machine needs only the SDKs of the teachers that it asks
PROVIDERS: dict[str, str] = {
    "offline": "sp2dpo_ray.teachers.offline:OfflineTeacher",
    "openai": "sp2dpo_ray.teachers.openai_compatible:OpenAITeacher",
    "scripted": "sp2dpo_ray.teachers.scripted:ScriptedTeacher",
}


def make_teacher(teacher: TeacherSection, decoding: DecodingSection) -> Teacher:
    """The teacher of one configuration section, ready to be asked.

    Raises ConfigError for a missing SDK, a missing key or options that the provider refuses.
    """
    module, _, name = PROVIDERS[teacher.provider].partition(":")
    try:
        factory = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"teachers: {teacher.name} needs the package {error.name!r}; "
            "run: pip install 'sp2dpo-ray[annotate]'"
        ) from error
    made: Teacher = factory(teacher, decoding)
    return made
