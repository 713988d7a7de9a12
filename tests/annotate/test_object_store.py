"""The journal in an object store: moto's S3 server, spoken to through pyarrow."""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sp2dpo_ray.annotate.journal import Journal, Segment
from sp2dpo_ray.annotate.merge import merge_segments
from sp2dpo_ray.annotate.record import read_record
from sp2dpo_ray.core.place import ObjectStore, find_place
from sp2dpo_ray.errors import ArtifactError, ConfigError
from tests.annotate.test_journal import CALLS, KEYS, answers_of, attempt, mixed, ok, state_of
from tests.conftest import SECRET


def test_it_holds_what_a_folder_holds(bucket: str) -> None:
    place = find_place(bucket.format("a"))
    assert list(Journal(place).new_entries()) == []
    mixed(place)
    record = read_record(Journal(place).new_entries())
    assert record.settled(KEYS) == [True, True, False]
    assert record.unanswered == 1
    assert answers_of(place)[KEYS[0]] == ("ok", "one")


def test_many_entries_make_few_objects_and_none_is_lost(bucket: str) -> None:
    place = find_place(bucket.format("b"))

    async def run() -> None:
        segment = Segment(place, "t")
        entries = [entry for _ in range(100) for entry in attempt(CALLS[0], ok())]
        await asyncio.gather(*(segment.append(entry) for entry in entries))

    asyncio.run(run())
    assert len(list(Journal(place).new_entries())) == 200
    assert len(place.files(".jsonl")) < 20


def test_an_entry_is_there_when_append_returns(bucket: str) -> None:
    place = find_place(bucket.format("c"))

    async def run() -> None:
        segment = Segment(place, "t")
        for count, call in enumerate(CALLS, start=1):
            await segment.append(attempt(call, None)[0])
            assert len(list(Journal(place).new_entries())) == count

    asyncio.run(run())


def test_merging_and_reading_on(bucket: str) -> None:
    place = find_place(bucket.format("d"))
    mixed(place)
    journal = Journal(place)
    before = state_of(place)
    assert len(list(journal.new_entries())) == 9
    assert merge_segments(place)["files_after"] == 1
    assert state_of(place) == before


def test_what_was_written_in_part_does_not_appear(bucket: str) -> None:
    """An interrupt in the middle of a long file: closing its stream would make an object of it."""
    place = find_place(bucket.format("cut"))

    class Interrupted(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell():
                raise KeyboardInterrupt
            return super().read(1 << 20)

    with pytest.raises(KeyboardInterrupt):
        place.put_file("t/long.jsonl", Interrupted(bytes(6 << 20)))
    assert place.files("") == {}


def test_an_altered_object_is_refused(bucket: str) -> None:
    place = find_place(bucket.format("e"))
    mixed(place)
    name = next(iter(place.files(".jsonl")))
    place.put(name, place.open(name).read().replace(b"p", b"q", 1))
    with pytest.raises(ArtifactError, match=r"pairs/e/t/.*was altered"):
        read_record(Journal(place).new_entries())


@pytest.mark.ray
def test_the_stage_writes_there_and_a_second_run_asks_nothing(
    bucket: str, demo_config: Path
) -> None:
    """In processes of their own, which find the credentials in their environment."""
    journal = bucket.format("stage")
    made = []
    for name in ("one", "two"):
        flags = ("data.limit=4", "data.eval_fraction=0", f"run.name={name}",
                 f"annotate.journal={journal}")  # fmt: skip
        for stage in ("prepare", "annotate"):
            command = [sys.executable, "-m", "sp2dpo_ray", stage, str(demo_config), "--json"]
            done = subprocess.run(
                [*command, *(part for flag in flags for part in ("--set", flag))],
                capture_output=True, text=True, timeout=120,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
        made.append(json.loads(done.stdout.splitlines()[-1])["calls_made"])
        assert not (demo_config.parent / "runs" / name / "journal").exists()
    assert made == [24, 0]
    for path in demo_config.parent.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path


def test_it_travels_without_credentials(bucket: str) -> None:
    import pickle

    place = find_place(bucket.format("f"))
    sent = pickle.dumps(place)
    assert SECRET.encode() not in sent
    place.put("x", b"1")
    again: Any = pickle.loads(sent)
    assert isinstance(again, ObjectStore)
    assert again.open("x").read() == b"1"


def test_a_place_with_a_key_in_it_is_refused_and_not_repeated() -> None:
    # pragma: allowlist nextline secret
    for where in ("s3://KEY:SECRET@bucket/x", "s3://b/x?secret_key=SECRET"):
        with pytest.raises(ConfigError, match="push must hold no credentials") as refused:
            find_place(where, named="push")
        assert "SECRET" not in str(refused.value)


def test_what_cannot_be_reached_is_said(bucket: str) -> None:
    with pytest.raises(ConfigError, match=r"annotate\.journal: 'ftp://x/y' cannot be used"):
        find_place("ftp://x/y")
    place = find_place(bucket.format("x").replace("pairs", "no-such-bucket"))
    with pytest.raises(OSError, match="no-such-bucket"):
        asyncio.run(Segment(place, "t").append(attempt(CALLS[0], None)[0]))
