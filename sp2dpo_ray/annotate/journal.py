"""The journal: what was asked and what came back, the truth of the annotation stage.

In: intents and results of attempts. Out: the same, in order, checked. One file (a segment) for each
writer, or one object a flush where files cannot grow. Each line carries a checksum over itself and
all lines of its file before it. Invariant: a result whose `append` returned is found again,
whatever was killed afterwards, and no byte of a line can change unseen.
"""

from __future__ import annotations

import asyncio
import json
import uuid
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sp2dpo_ray.core.place import Folder, Place
from sp2dpo_ray.errors import ArtifactError

SUFFIX = ".jsonl"
MERGED = "merged-"  # files that stand for others; their first line names those
CHUNK_BYTES = 8 << 20
TAIL = b',"crc":"%08x"}'
TAIL_BYTES = len(TAIL % 0)

Entry = dict[str, Any]


def write_line(entry: Entry, crc: int) -> tuple[bytes, int]:
    """One line and the checksum that the next line goes on from."""
    # ensure_ascii: no text of any alphabet can break the line or the encoding
    body = json.dumps(entry, separators=(",", ":"))[:-1].encode("ascii")
    crc = zlib.crc32(body, crc)
    return body + TAIL % crc + b"\n", crc


def read_line(line: bytes, crc: int) -> tuple[Entry, int] | None:
    """The entry of a line (without its line break), or None if it was altered."""
    body, tail = line[:-TAIL_BYTES], line[-TAIL_BYTES:]
    crc = zlib.crc32(body, crc)
    return (json.loads(body + b"}"), crc) if tail == TAIL % crc else None


def _new_name(teacher: str) -> str:
    return f"{teacher}/{uuid.uuid4().hex}"


class Segment:
    """The lines of one writer for one teacher; used from one event loop."""

    def __init__(self, place: Place, teacher: str) -> None:
        self._place = place
        self._name = _new_name(teacher)
        self._file: Any = None
        self._crc = 0
        self._waiting: list[tuple[Entry, asyncio.Future[None]]] = []
        self._objects = 0
        self._flusher: asyncio.Task[None] | None = None

    async def append(self, entry: Entry) -> None:
        """Return when the entry is out of this process's hands; raises OSError if it cannot be."""
        if isinstance(self._place, Folder):
            self._write(self._place, entry)
            return
        written = asyncio.get_running_loop().create_future()
        self._waiting.append((entry, written))
        if self._flusher is None or self._flusher.done():
            self._flusher = asyncio.create_task(self._flush())
        await written

    def _write(self, place: Folder, entry: Entry) -> None:
        if self._file is None:
            self._file = place.open_to_append(self._name + SUFFIX)
        line, crc = write_line(entry, self._crc)
        left = memoryview(line)
        try:
            while left:  # a nearly full disk takes a part
                left = left[self._file.write(left) :]
        except OSError:
            # what stands behind a cut line cannot be read: go on in another file
            self.close()
            self._name, self._crc = _new_name(self._name.partition("/")[0]), 0
            raise
        self._crc = crc

    async def _flush(self) -> None:
        """Write what has gathered as one object, as long as there is something: a slow store gets
        few large objects, a fast one many small ones."""
        while self._waiting:
            batch, self._waiting = self._waiting, []
            lines, crc = [], 0
            for entry, _ in batch:
                line, crc = write_line(entry, crc)
                lines.append(line)
            name = f"{self._name}-{self._objects:08d}{SUFFIX}"
            self._objects += 1
            try:
                await asyncio.to_thread(self._place.put, name, b"".join(lines))
            except Exception as error:
                for _, written in batch:
                    written.set_exception(error)
            else:
                for _, written in batch:
                    written.set_result(None)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


@dataclass(slots=True)
class _Reader:
    """How far a file was read."""

    offset: int = 0
    crc: int = 0


class Journal:
    """All segments of a place, or of one teacher's folder in it; what was read is not read again.

    stood_in_for: how far the files reach that a merged one stands for, and the checksum there.
    cut_off: merged files whose writing was; what they would stand for is still there.
    """

    def __init__(self, place: Place, folder: str = "") -> None:
        self._place = place
        self._folder = f"{folder}/" if folder else ""
        self._readers: dict[str, _Reader] = {}
        self.stood_in_for: dict[str, tuple[int, int]] = {}
        self.cut_off: set[str] = set()
        self.torn = 0

    def new_entries(self) -> Iterator[Entry]:
        """Entries since the last call. A torn last line is left for later (its writer may be at it,
        or died) and counted; an altered line is an ArtifactError with its place."""
        self.torn = 0
        files = {
            name: size
            for name, size in self._place.files(SUFFIX).items()
            if name.startswith(self._folder)
        }
        for name in [name for name in files if MERGED in name and name not in self._readers]:
            head, body = self._head(name), files[name]
            if head is not None:
                body -= head["size"]
            if head is None or body < head.get("bytes", 0):
                self.cut_off.add(name)
                del files[name]
                continue
            self.cut_off.discard(name)
            self.stood_in_for |= {n: tuple(end) for n, end in head["replaces"].items()}
        for name, size in files.items():
            if name not in self._readers:
                self._readers[name] = _Reader(*self.stood_in_for.get(name, (0, 0)))
            if size > self._readers[name].offset:
                yield from self._read(name, self._readers[name])

    def position(self, name: str) -> tuple[int, int]:
        """How far a file was read, and the checksum there."""
        reader = self._readers[name]
        return reader.offset, reader.crc

    def _head(self, name: str) -> Entry | None:
        """The first line of a merged file and its size in bytes; None where it is cut off in it."""
        with self._place.open(name) as file:
            line, newline = b"", b""
            # it names every file that it stands for, and may be longer than a chunk
            while not newline and (chunk := file.read(CHUNK_BYTES)):
                part, newline, _ = chunk.partition(b"\n")
                line += part
        if not newline:
            return None
        read = read_line(line, 0)
        if read is None or read[0].get("kind") != "merged":
            raise ArtifactError(f"{self._place}/{name}: its first line was altered{MEND}")
        return read[0] | {"size": len(line) + 1}

    def _read(self, name: str, reader: _Reader) -> Iterator[Entry]:
        with self._place.open(name) as file:
            file.seek(reader.offset)
            rest = b""
            while chunk := file.read(CHUNK_BYTES):
                lines = (rest + chunk).split(b"\n")
                rest = lines.pop()
                for line in lines:
                    read = read_line(line, reader.crc)
                    if read is None:
                        raise ArtifactError(
                            f"{self._place}/{name}: the line at byte {reader.offset} was altered "
                            f"({line[:60]!r}...){MEND}"
                        )
                    entry, reader.crc = read
                    reader.offset += len(line) + 1
                    yield entry
        self.torn += bool(rest)


MEND = "; a journal is only ever appended to. Restore the file from a copy"
