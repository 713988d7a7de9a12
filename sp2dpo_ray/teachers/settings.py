"""The settings of Table 6 in the words of a provider: what a request carries, what it cannot.

In: the decoding section and a provider's table of names. Out: the options of every request, and the
settings that were dropped, each with the reason. Invariant: a setting that is neither sent nor
neutral stands among the dropped ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import ValidationError

from sp2dpo_ray.config import DecodingSection, TeacherSection
from sp2dpo_ray.config.section import Section
from sp2dpo_ray.errors import ConfigError

# values that ask for nothing, so that leaving them out changes nothing
NEUTRAL: dict[str, Any] = {
    "top_k": None,
    "seed": None,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "repetition_penalty": 1.0,
    "n": 1,
    "stop": None,
}


@dataclass(frozen=True, slots=True)
class Settings:
    """sent: options of a request by the provider's names. dropped: our name -> why not sent."""

    sent: dict[str, Any] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)


Options = TypeVar("Options", bound=Section)


def options_of(teacher: TeacherSection, model: type[Options]) -> Options:
    """The teacher's options read strictly, for providers whose options are a closed set."""
    try:
        return model.model_validate(teacher.options)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(
            f"teachers: {teacher.name}: options.{where}: {first['msg']}; a {teacher.provider} "
            f"teacher takes {sorted(model.model_fields)}"
        ) from None


def in_words_of(
    names: Mapping[str, str],
    decoding: DecodingSection,
    options: Mapping[str, Any],
    refused: Mapping[str, str] | None = None,
) -> Settings:
    """Decoding settings by the names that a provider has for them.

    names: our name -> the provider's. options: what the configuration adds, by the provider's
    names; null takes a setting out again. refused: our name -> why this very model does not take
    it.
    """
    sent: dict[str, Any] = {}
    dropped: dict[str, str] = {}
    for name, value in decoding.of_answers.items():
        if name in NEUTRAL and value == NEUTRAL[name]:
            continue
        if refused and name in refused:
            dropped[name] = refused[name]
        elif name not in names:
            dropped[name] = "the provider has no such setting"
        elif names[name] in options and options[names[name]] is None:
            dropped[name] = "options take it out"
        else:
            sent[names[name]] = value
    sent |= {name: value for name, value in options.items() if value is not None}
    return Settings(sent, dropped)
