"""What benchmarks share: items, answers, results; judge prompts; sides; what is stripped.

In: files of questions, answers of a model. Out: values an item. Invariant: a text is put into a
prompt in one pass, so that no answer can fill another's place; sides depend on the question alone,
and so are the same for every model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from sp2dpo_ray.core.hashing import uniform_draws
from sp2dpo_ray.errors import ConfigError, DataError

SIDES_SEED = 0
FENCE = "```"
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Item:
    """One question of a benchmark: its turns, and what else the benchmark knows of it."""

    id: str
    turns: tuple[str, ...]
    system: str | None = None
    known: Mapping[str, Any] = field(default_factory=dict)


Answers = Mapping[str, tuple[str, ...]]  # item -> the answer of each turn


@dataclass(frozen=True, slots=True)
class Result:
    """figures: what a benchmark reports, None where nothing was judged. values: one number an
    item, to compare models item by item, None where there is none. notes: what was odd, by name."""

    figures: dict[str, float | None]
    values: dict[str, float | None]
    notes: dict[str, int] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)


def read_lines(path: Path) -> list[Row]:
    """A JSON list, or one JSON object a line; DataError with the line that is none."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    if text.lstrip().startswith("["):
        try:
            rows: list[Row] = json.loads(text)
        except ValueError as error:
            raise DataError(f"{path}: is no JSON list: {error}") from error
        return rows
    found = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                found.append(json.loads(line))
            except ValueError as error:
                raise DataError(f"{path}: line {number} is no JSON: {error}") from error
    return found


@contextmanager
def read_as(form: str, *paths: Path | None) -> Iterator[None]:
    """Turns a missing key into a DataError with the files and the form that was looked for."""
    try:
        yield
    except (KeyError, IndexError, TypeError) as error:
        files = " or ".join(str(path) for path in paths if path)
        raise DataError(
            f"{files}: an entry is not as {form} has it: {type(error).__name__} {error}"
        ) from error


def judge_prompt(name: str, folder: Path | None) -> str:
    """The text of that name, from the folder that the configuration gives, else our own."""
    if folder is not None:
        path = folder / f"{name}.txt"
        if not path.exists():
            raise ConfigError(f"evaluate.prompts: {path} is missing")
        return path.read_text(encoding="utf-8").strip()
    text = (resources.files(__package__) / "judge_prompts" / f"{name}.txt").read_text("utf-8")
    return text.strip()


def filled(template: str, **texts: str) -> str:
    """The template with each `{name}` replaced, once."""
    return re.sub(r"\{(\w+)\}", lambda match: texts.get(match[1], match[0]), template)


def swapped(items: Sequence[Item]) -> dict[str, bool]:
    """Whether the model's answer stands first, by a draw on the question's text."""
    draws = uniform_draws((item.turns[0] for item in items), seed=SIDES_SEED, purpose="judge-sides")
    return {item.id: bool(draw < 0.5) for item, draw in zip(items, draws, strict=True)}


def stripped(answer: str) -> str:
    """An answer without the fence that wraps all of it, or one at its end that was never opened.

    A code block that belongs to the answer stays.
    """
    text = answer.strip()
    lines = text.split("\n")
    fences = [number for number, line in enumerate(lines) if line.lstrip().startswith(FENCE)]
    if len(fences) == 2 and fences[0] == 0 and fences[1] == len(lines) - 1:
        return "\n".join(lines[1:-1]).strip()
    if len(fences) % 2 and fences[-1] == len(lines) - 1 and lines[-1].strip() == FENCE:
        return "\n".join(lines[:-1]).strip()
    return text


def whole(items: Sequence[Item], answers: Answers, where: str) -> None:
    """Refuse answers that do not fit the items: missing, foreign, or of other numbers of turns."""
    missing = [item.id for item in items if item.id not in answers]
    foreign = sorted(set(answers) - {item.id for item in items})
    if missing or foreign:
        raise DataError(
            f"{where}: {len(missing)} of {len(items)} questions have no answer, {len(foreign)} "
            f"answers belong to none; the first is {(missing or foreign)[0]!r}"
        )
    for item in items:
        if len(answers[item.id]) != len(item.turns):
            raise DataError(
                f"{where}: question {item.id} has {len(item.turns)} turns, "
                f"{len(answers[item.id])} answers"
            )


def mean_of(values: Iterable[float | None]) -> float | None:
    """The mean over those that are there; None where none is."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


@contextmanager
def installed(benchmark: str) -> Iterator[None]:
    """Turns a package that is missing into the line that installs it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"evaluate.benchmarks: {benchmark} needs the package {error.name}, which is not "
            "installed here; run: pip install 'sp2dpo-ray[evaluate]'"
        ) from error
