"""Preference pairs: every accepted form of a row, brought into one.

In: an Arrow table in one of four forms (see `Form`). Out: `Pair` values, and the Arrow schema that
`pairs/` stores. Invariant: the prompt is the conversation before the two responses, and both
responses answer exactly that conversation.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import pyarrow as pa

from sp2dpo_ray.core.hashing import sha256_hex
from sp2dpo_ray.errors import DataError

TURNS = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
PAIR_FIELDS = [
    pa.field("prompt_id", pa.string()),
    pa.field("prompt", TURNS),
    pa.field("chosen", pa.string()),
    pa.field("rejected", pa.string()),
]
Turns = list[dict[str, str]]
SCORES = ("score_chosen", "score_rejected")  # columns of data that was scored


class Form(StrEnum):
    """The accepted forms of a data set's rows."""

    CONVERSATIONS = "lists of {role, content}, the prompt within them (UltraFeedback, TRL)"
    TURNS_AND_PROMPT = "a list of {role, content} as prompt, and the responses as such lists"
    PLAIN = "three texts: prompt, chosen, rejected"
    HH = "two texts of '\\n\\nHuman: ... \\n\\nAssistant: ...' turns (Anthropic HH)"


@dataclass(frozen=True, slots=True)
class Pair:
    """One preference pair: the conversation so far, the preferred and the other response."""

    prompt_id: str
    prompt: Turns
    chosen: str
    rejected: str

    @property
    def prompt_text(self) -> str:
        """The conversation as one text: the request alone, or each turn behind its role."""
        if len(self.prompt) == 1 and self.prompt[0]["role"] == "user":
            return self.prompt[0]["content"]
        return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in self.prompt)


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that is no pair, and why."""

    prompt_id: str
    reason: str


def detect_form(table: pa.Table) -> Form:
    """Which form the table's rows have, from its columns' names and types."""
    for name in ("chosen", "rejected"):
        if name not in table.column_names:
            raise DataError(
                f"data.source: column {name!r} is missing; the columns are {table.column_names}. "
                "Accepted forms: " + "; ".join(Form)
            )
    chosen, rejected = (table.schema.field(name).type for name in ("chosen", "rejected"))
    if chosen != rejected and not (_is_turns(chosen) and _is_turns(rejected)):
        raise DataError(f"data.source: chosen is {chosen} but rejected is {rejected}")
    prompt = table.schema.field("prompt").type if "prompt" in table.column_names else None
    if _is_turns(chosen):
        return Form.TURNS_AND_PROMPT if _is_turns(prompt) else Form.CONVERSATIONS
    if not _is_text(chosen):
        raise DataError(f"data.source: chosen must be text or a list of turns, not {chosen}")
    if prompt is None:
        return Form.HH
    if not _is_text(prompt):
        raise DataError(f"data.source: prompt must be text when chosen is text, not {prompt}")
    return Form.PLAIN


def _is_turns(kind: pa.DataType | None) -> bool:
    if kind is None or not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return False
    item = kind.value_type
    return pa.types.is_struct(item) and {"role", "content"} <= {field.name for field in item}


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def read_pairs(table: pa.Table) -> Iterator[Pair | Rejected]:
    """Each row of the table as a pair, or as what it lacks; same order, same count."""
    form = detect_form(table)
    columns = [
        table[name].to_pylist() if name in table.column_names else [None] * table.num_rows
        for name in ("prompt_id", "prompt", "chosen", "rejected")
    ]
    for number, (prompt_id, prompt, chosen, rejected) in enumerate(zip(*columns, strict=True)):
        try:
            turns, better, worse = _read_row(form, prompt, chosen, rejected)
        except (TypeError, KeyError, ValueError) as error:
            raise DataError(
                f"data.source: row {number}: cannot be read as {form}: {error}"
            ) from error
        name = str(prompt_id) if prompt_id not in (None, "") else sha256_hex([turns, better, worse])
        reason = _fault(turns, better, worse)
        yield (
            Rejected(name, reason) if reason else Pair(name, turns or [], better or "", worse or "")
        )


def _read_row(
    form: Form, prompt: Any, chosen: Any, rejected: Any
) -> tuple[Turns | None, str | None, str | None]:
    """Prompt turns and the two responses; turns are None if the two contexts differ."""
    if form is Form.PLAIN:
        return _user(prompt), chosen, rejected
    if form is Form.HH:
        chosen, rejected = _hh_turns(chosen), _hh_turns(rejected)
    context, better = _split(chosen)
    other, worse = _split(rejected)
    if not chosen or not rejected:  # a side without any turn is empty, and differs in nothing else
        context = other = context or other
    if form is Form.TURNS_AND_PROMPT:
        context, other = (_behind(prompt or [], turns) for turns in (context, other))
    elif form is Form.CONVERSATIONS:  # the responses alone, the prompt in its own column
        context, other = (
            turns + _user(prompt) if not turns or (prompt and not _asks(turns)) else turns
            for turns in (context, other)
        )
    same = _cleaned(context) == _cleaned(other)
    return (_cleaned(context) if same else None), better, worse


def _asks(turns: list[dict[str, Any]]) -> bool:
    return any(turn["role"] == "user" for turn in turns)


def _behind(prompt: list[dict[str, Any]], turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The prompt and the turns after it, which may be whole conversations that begin with it."""
    whole = bool(prompt) and _cleaned(turns[: len(prompt)]) == _cleaned(prompt)
    return turns if whole else prompt + turns


def _split(turns: Any) -> tuple[list[dict[str, Any]], str | None]:
    """The turns before the response, and the response (None where there is none)."""
    if turns and turns[-1]["role"] == "assistant":
        return turns[:-1], turns[-1]["content"]
    return turns or [], None


def _cleaned(turns: list[dict[str, Any]]) -> Turns:
    return [{"role": turn["role"], "content": turn["content"] or ""} for turn in turns]


def _user(text: str | None) -> Turns:
    return [{"role": "user", "content": text or ""}]


def _hh_turns(text: str | None) -> Turns:
    if not (text or "").strip():
        return []
    parts = re.split(r"(?:^|\n\n)(Human|Assistant):", text or "")
    if parts[0].strip() or len(parts) < 3:
        raise ValueError(
            "the text must begin with 'Human:' and a data set without a prompt column "
            "must hold whole conversations"
        )
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[role], "content": content.strip()}
        for role, content in zip(parts[1::2], parts[2::2], strict=True)
    ]


def _fault(turns: Turns | None, chosen: str | None, rejected: str | None) -> str:
    """Why a row is no pair: every empty part by name, or contexts that differ."""
    if turns is None:
        return "contexts_differ"
    empty = [
        f"empty_{name}"
        for name, text in (
            ("prompt", turns[-1]["content"] if turns else None),
            ("chosen", chosen),
            ("rejected", rejected),
        )
        if not (text or "").strip()
    ]
    return "+".join(empty)


def pairs_from(table: pa.Table) -> list[Pair]:
    """The pairs of a table that `pairs/` stores."""
    columns = (table[field.name].to_pylist() for field in PAIR_FIELDS)
    return [Pair(*row) for row in zip(*columns, strict=True)]
