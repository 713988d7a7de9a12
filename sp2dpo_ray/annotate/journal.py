"""The journal: what was asked and what came back, the truth of the annotation stage.

In: intents and replies of attempts. Out: the settled answers by call key. One file (a segment) for
each writer, only ever appended to: an intent before the request, the result before anybody uses it.
Invariant: a settled result that was flushed is found again, whatever was killed afterwards.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sp2dpo_ray.core.annotation import SETTLED
from sp2dpo_ray.core.calls import Call
from sp2dpo_ray.errors import ArtifactError
from sp2dpo_ray.teachers.base import Reply

SEGMENTS = "*.jsonl"


class Segment:
    """The file of one writer for one teacher; made at the first record."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / f"{uuid.uuid4().hex}.jsonl"
        self._file: Any = None

    def record(self, call: Call, attempt: int, reply: Reply | None) -> None:
        """Append an intent (no reply) or a result, and hand it to the operating system."""
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a", encoding="utf-8", errors="backslashreplace")
        entry: dict[str, Any] = {
            "kind": "intent" if reply is None else "result",
            "key": call.key,
            "prompt_id": call.prompt_id,
            "teacher": call.teacher,
            "variant": call.variant,
            "attempt": attempt,
            "time": time.time(),
        }
        if reply is not None:
            entry |= {name: value for name, value in asdict(reply).items() if value is not None}
        # ensure_ascii: a line break of any alphabet inside an answer cannot break the line
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


@dataclass(frozen=True, slots=True)
class Result:
    """The end of a call as the journal holds it; `text` is empty where there was no answer."""

    key: str
    outcome: str
    text: str
    detail: str
    served_model: str | None
    prompt_tokens: int | None
    completion_tokens: int | None


class Journal:
    """All segments below a folder, read further each time: what was read is not read again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read_to: dict[Path, int] = {}
        self.torn = 0

    def new_entries(self) -> Iterator[dict[str, Any]]:
        """Entries since the last call. A torn last line is left for later (a writer may be at it);
        a broken line before the end is an ArtifactError with its place."""
        self.torn = 0
        for path in sorted(self._folder.rglob(SEGMENTS)):
            start = self._read_to.get(path, 0)
            with path.open("rb") as file:
                file.seek(start)
                chunk = file.read()
            whole, newline, rest = chunk.rpartition(b"\n")
            self.torn += bool(rest)
            self._read_to[path] = start + len(whole) + len(newline)
            for line in whole.splitlines() if newline else ():
                try:
                    yield json.loads(line)
                except ValueError:
                    raise ArtifactError(
                        f"{path}: a line was altered ({line[:60]!r}...); a journal is only ever "
                        "appended to. Restore the file from a copy"
                    ) from None

    def settled_keys(self) -> set[bytes]:
        """Keys of the calls settled since the last read."""
        return {
            bytes.fromhex(entry["key"])
            for entry in self.new_entries()
            if entry["kind"] == "result" and entry["outcome"] in SETTLED
        }


def recorded_results(folder: Path) -> dict[str, Result]:
    """What is on record of every call, by key: its first settled answer, else its last failure."""
    best: dict[str, tuple[tuple[bool, float], Result]] = {}
    for entry in Journal(folder).new_entries():
        if entry["kind"] != "result":
            continue
        settled = entry["outcome"] in SETTLED
        # where two actors raced, the answer recorded first counts
        rank = (settled, -entry["time"] if settled else entry["time"])
        known = best.get(entry["key"])
        if known is None or rank > known[0]:
            best[entry["key"]] = (rank, _result(entry))
    return {key: result for key, (_, result) in best.items()}


def _result(entry: dict[str, Any]) -> Result:
    return Result(
        key=entry["key"],
        outcome=entry["outcome"],
        text=entry.get("text", ""),
        detail=entry.get("detail", ""),
        served_model=entry.get("served_model"),
        prompt_tokens=entry.get("prompt_tokens"),
        completion_tokens=entry.get("completion_tokens"),
    )
