"""A teacher that answers from a script: for tests and for replaying what somebody else labelled.

In: `options.script`, a JSONL file of {"prompt_id", "variant", "replies": [...]}; each reply is
either the raw text of an answer or {"outcome": ..., "text": ..., "retry_after_s": ...}. Out: the
replies in order, the last one again and again. `options.default` answers what is not in the script.
Invariant: answers depend on the script and on nothing else.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

from sp2dpo_ray.config import DecodingSection, TeacherSection
from sp2dpo_ray.core.annotation import Outcome
from sp2dpo_ray.core.calls import Call
from sp2dpo_ray.core.costs import Usage
from sp2dpo_ray.core.lines import read_json_lines
from sp2dpo_ray.errors import ConfigError
from sp2dpo_ray.teachers.base import Reply
from sp2dpo_ray.teachers.settings import Settings


class ScriptedTeacher:
    settings = Settings()  # nothing is decoded here

    def __init__(self, teacher: TeacherSection, decoding: DecodingSection) -> None:
        known = {"script", "default", "latency_s"}
        if unknown := teacher.options.keys() - known:
            raise ConfigError(
                f"teachers: {teacher.name}: options {sorted(unknown)} are unknown to the scripted "
                f"teacher, which knows {sorted(known)}"
            )
        self._model = teacher.model
        self._default: Any = teacher.options.get("default")
        self._latency_s = float(teacher.options.get("latency_s", 0))
        self._replies: dict[tuple[str, str], list[Any]] = {}
        self._asked: Counter[tuple[str, str]] = Counter()
        if script := teacher.options.get("script"):
            for row in read_json_lines(Path(script)):
                self._replies[row["prompt_id"], row["variant"]] = row["replies"]

    async def ask(self, call: Call) -> Reply:
        if self._latency_s:
            await asyncio.sleep(self._latency_s)
        place = (call.prompt_id, call.variant)
        reply = self._default
        if replies := self._replies.get(place):
            reply = replies[min(self._asked[place], len(replies) - 1)]
            self._asked[place] += 1
        if reply is None:
            return Reply(Outcome.TRANSPORT, detail=f"the script has no reply for {place}")
        if isinstance(reply, str):
            return Reply(Outcome.OK, text=reply, served_model=self._model)
        usage = Usage(**reply["usage"]) if "usage" in reply else None
        return Reply(**{**reply, "outcome": Outcome(reply["outcome"]), "usage": usage})

    async def close(self) -> None:
        """Nothing to release."""
