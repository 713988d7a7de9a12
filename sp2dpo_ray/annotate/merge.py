"""Merging a journal's segments: many small files become one a teacher.

In: a journal nobody writes to. Out: the same journal in fewer files: every result, and the intents
that have none; an intent that has its result says nothing that the result does not. Invariant: the
merged file names what it stands for, and its own length, in its first line, so a reader that finds
both counts neither twice, and one that finds a part of it leaves it out, whenever this was cut off.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from typing import IO

from sp2dpo_ray.annotate.journal import MERGED, SUFFIX, Entry, Journal, write_line
from sp2dpo_ray.core.place import Place
from sp2dpo_ray.errors import ArtifactError

Ends = dict[str, tuple[int, int]]


def merge_segments(place: Place) -> dict[str, int]:
    """Merge each teacher's files into one; returns files and bytes before and after."""
    before = place.files(SUFFIX)
    folders = sorted({name.rpartition("/")[0] for name in before})
    for folder in folders:
        names = [name for name in before if name.rpartition("/")[0] == folder]
        if len(names) > 1 or (names and MERGED not in names[0]):
            _merge(place, folder, names)
    after = place.files(SUFFIX)
    return {
        "files_before": len(before),
        "files_after": len(after),
        "bytes_before": sum(before.values()),
        "bytes_after": sum(after.values()),
    }


def _merge(place: Place, folder: str, names: list[str]) -> None:
    whole = Journal(place, folder)
    answered = set()
    merged = f"{folder}/{MERGED}{time.time_ns()}{SUFFIX}"
    with tempfile.TemporaryFile() as everything, tempfile.TemporaryFile() as file:
        for entry in whole.new_entries():  # read once: a file may grow meanwhile
            everything.write(json.dumps(entry).encode("ascii") + b"\n")
            if entry["kind"] == "result":
                answered.add(entry["id"])

        def kept() -> Iterator[Entry]:
            everything.seek(0)
            for line in everything:
                entry = json.loads(line)
                if entry["kind"] != "intent" or entry["id"] not in answered:
                    yield entry

        ends: Ends = {n: whole.position(n) for n in names if n not in whole.cut_off}
        size = sum(len(write_line(entry, 0)[0]) for entry in kept())
        head = {"kind": "merged", "replaces": ends | whole.stood_in_for, "bytes": size}
        crc = _write(file, head, 0)
        for entry in kept():
            crc = _write(file, entry, crc)
        file.seek(0)
        place.put_file(merged, file)
    # what cannot be read back replaces nothing
    again = Journal(place, folder)
    for _ in again.new_entries():
        pass
    if merged in again.cut_off:
        raise ArtifactError(f"{place}/{merged}: not whole after it was written; nothing is removed")
    sizes = place.files(SUFFIX)
    for name in names:
        # a file that grew meanwhile has a writer: it stays, and is read from where it was
        if name in whole.cut_off or sizes.get(name) == ends[name][0]:
            place.remove(name)


def _write(file: IO[bytes], entry: Entry, crc: int) -> int:
    line, crc = write_line(entry, crc)
    file.write(line)
    return crc
