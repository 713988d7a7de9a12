"""The answers of a journal by key, in a temporary file, so that memory stays flat.

In: the entries of a journal, streamed. Out: the one answer to each call that counts. Invariant: of
two settled answers to one call the first recorded counts, and a settled one before any failure.
"""

from __future__ import annotations

import json
import sqlite3
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sp2dpo_ray.annotate.journal import Entry
from sp2dpo_ray.core.annotation import SETTLED

ROWS_AT_ONCE = 5_000


@dataclass(frozen=True, slots=True)
class Answer:
    """The end of a call as the journal holds it; `text` is empty where there was no answer."""

    outcome: str
    text: str
    detail: str
    served_model: str | None
    prompt_tokens: int | None
    completion_tokens: int | None


KEPT = """
    INSERT INTO answers VALUES (?, ?, ?, ?) ON CONFLICT (key) DO UPDATE
    SET settled = excluded.settled, time = excluded.time, answer = excluded.answer
    WHERE excluded.settled > settled
       OR excluded.settled = settled AND CASE settled WHEN 1 THEN excluded.time < time
                                                      ELSE excluded.time > time END
"""


class Answers:
    """What is on record of every call, by key; lies in a temporary file, so memory stays flat."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="sp2dpo-answers-")
        self._db = sqlite3.connect(Path(self._folder.name) / "answers.sqlite")
        self._db.execute("PRAGMA journal_mode = OFF")
        self._db.execute("PRAGMA synchronous = OFF")
        self._db.execute(
            "CREATE TABLE answers (key BLOB PRIMARY KEY, settled INTEGER, time REAL, answer TEXT)"
            " WITHOUT ROWID"
        )
        rows: list[tuple[Any, ...]] = []
        for entry in entries:
            if entry["kind"] == "result":
                rows.append(_row(entry))
                if len(rows) == ROWS_AT_ONCE:
                    self._db.executemany(KEPT, rows)
                    rows.clear()
        self._db.executemany(KEPT, rows)
        self._db.commit()

    def get(self, keys: list[str]) -> dict[str, Answer]:
        """The answers to these calls, as far as there are any."""
        found: dict[str, Answer] = {}
        for start in range(0, len(keys), ROWS_AT_ONCE):
            part = [bytes.fromhex(key) for key in keys[start : start + ROWS_AT_ONCE]]
            marks = ",".join("?" * len(part))
            query = f"SELECT key, answer FROM answers WHERE key IN ({marks})"
            for key, answer in self._db.execute(query, part):
                found[key.hex()] = Answer(*json.loads(answer))
        return found

    def close(self) -> None:
        self._db.close()
        self._folder.cleanup()


def _row(entry: Entry) -> tuple[Any, ...]:
    usage = entry.get("usage") or {}
    answer = [
        entry["outcome"],
        entry.get("text") or "",
        entry.get("detail", ""),
        entry.get("served_model"),
        usage.get("prompt_tokens"),
        usage.get("completion_tokens"),
    ]
    settled = int(entry["outcome"] in SETTLED)
    return bytes.fromhex(entry["key"]), settled, entry["time"], json.dumps(answer)
