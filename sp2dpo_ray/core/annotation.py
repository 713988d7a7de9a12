"""What a teacher says of a pair, and the strict reading of its raw answer.

In: raw text. Out: an `Annotation` or a named outcome with the rule that was broken. Reading is
pure, so the raw text can be read again by a better parser without a new call.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sp2dpo_ray.core.taxonomy import Category, parse_category

CATEGORY_KEY = "semantic_gap_category"
MAGNITUDE_KEY = "semantic_gap_magnitude"
CONFIDENCE_KEY = "semantic_gap_confidence"
ANSWER_KEYS = frozenset({CATEGORY_KEY, MAGNITUDE_KEY, CONFIDENCE_KEY})

# The JSON schema of an answer (Eq. 19), for providers that constrain their output to one.
ANSWER_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        CATEGORY_KEY: {"type": "string", "enum": [str(category) for category in Category]},
        MAGNITUDE_KEY: {"type": "number", "minimum": 0, "maximum": 1},
        CONFIDENCE_KEY: {"type": "number", "minimum": 0, "maximum": 1},
    },
    "required": [CATEGORY_KEY, MAGNITUDE_KEY, CONFIDENCE_KEY],
    "additionalProperties": False,
}


class Outcome(StrEnum):
    """How a call ended; a closed set."""

    OK = "ok"
    PARSE_ERROR = "parse_error"
    REFUSAL = "refusal"
    FILTERED = "filtered"
    TRUNCATED = "truncated"
    AUTH = "auth"
    QUOTA = "quota"
    TRANSPORT = "transport"
    BUDGET_STOP = "budget_stop"
    NOT_ATTEMPTED = "not_attempted"
    SKIPPED = "skipped"  # economy: the answer could not have mattered; never in the journal
    PREDICTED = "predicted"  # by a distilled predictor in the teachers' place; never in the journal


# Outcomes that settle a call: it was answered (and paid), and asking again is a person's choice.
SETTLED = frozenset(
    {Outcome.OK, Outcome.PARSE_ERROR, Outcome.REFUSAL, Outcome.FILTERED, Outcome.TRUNCATED}
)


@dataclass(frozen=True, slots=True)
class Annotation:
    """The semantic gap of one call (Eq. 19): magnitude and confidence lie in [0, 1]."""

    category: Category
    magnitude: float
    confidence: float


@dataclass(frozen=True, slots=True)
class Reading:
    """An annotation, or None and the rule that the raw text broke."""

    annotation: Annotation | None
    detail: str = ""

    @property
    def outcome(self) -> Outcome:
        return Outcome.PARSE_ERROR if self.annotation is None else Outcome.OK


class _Broken(ValueError):
    """A rule of the answer format that the raw text breaks."""


def read_answer(text: str) -> Reading:
    """Read one answer strictly: one JSON object, exact keys, known category, numbers in range."""
    try:
        return Reading(_read(text))
    except _Broken as broken:
        return Reading(None, str(broken))


def _read(text: str) -> Annotation:
    try:
        answer = json.loads(text, parse_int=_short_int, parse_constant=_refuse_constant,
                            object_pairs_hook=_unique)  # fmt: skip
    except json.JSONDecodeError as error:
        raise _Broken(f"not one JSON object: {error.msg} at character {error.pos}") from None
    except RecursionError:
        raise _Broken("not one JSON object: nested too deeply") from None
    if not isinstance(answer, dict):
        raise _Broken(f"not a JSON object but {type(answer).__name__}")
    if answer.keys() != ANSWER_KEYS:
        missing = sorted(ANSWER_KEYS - answer.keys())
        extra = sorted(answer.keys() - ANSWER_KEYS)
        raise _Broken(f"keys differ: missing {missing}, unknown {extra}")
    name = answer[CATEGORY_KEY]
    category = parse_category(name) if isinstance(name, str) else None
    if category is None:
        raise _Broken(f"{CATEGORY_KEY} is not a known category: {name!r}")
    return Annotation(category, _unit(answer, MAGNITUDE_KEY), _unit(answer, CONFIDENCE_KEY))


def _unit(answer: dict[str, Any], key: str) -> float:
    value = answer[key]
    # bool is an int in Python, but `true` is no magnitude
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _Broken(f"{key} is not a number: {value!r}")
    if not 0 <= value <= 1:
        raise _Broken(f"{key} lies outside [0, 1]: {value!r}")
    return float(value)


def _short_int(digits: str) -> int:
    # Python refuses some thousands of digits with an error of its own
    if len(digits) > 300:
        raise _Broken(f"a number of {len(digits)} digits")
    return int(digits)


def _refuse_constant(name: str) -> float:
    raise _Broken(f"not a JSON number: {name}")


def _unique(items: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in items}) < len(items):
        raise _Broken("a key stands twice")
    return dict(items)
