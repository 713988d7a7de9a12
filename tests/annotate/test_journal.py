"""The journal: found again after any cut, refused when altered, first answer counts, mergeable."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sp2dpo_ray.annotate.answers import Answers
from sp2dpo_ray.annotate.entries import intent_entry, result_entry
from sp2dpo_ray.annotate.journal import Entry, Journal, Segment, write_line
from sp2dpo_ray.annotate.merge import merge_segments
from sp2dpo_ray.annotate.record import Record, read_record
from sp2dpo_ray.config import load_config
from sp2dpo_ray.core.annotation import SETTLED, Outcome
from sp2dpo_ray.core.calls import Call, TeacherIdentity, calls_of
from sp2dpo_ray.core.costs import Usage
from sp2dpo_ray.core.pairs import Pair
from sp2dpo_ray.core.place import Folder, Place
from sp2dpo_ray.core.prompts import load_prompts
from sp2dpo_ray.errors import ArtifactError, Stopped
from sp2dpo_ray.run import Run
from sp2dpo_ray.stages import STAGES
from sp2dpo_ray.stages.panel import journal_held
from sp2dpo_ray.teachers.base import Reply

PROMPTS = load_prompts(("v1", "v2", "v3"))
TEACHER = TeacherIdentity("t", "offline", "rules", {})
PAIR = Pair("p", [{"role": "user", "content": "x"}], "a", "b")
CALLS: list[Call] = list(calls_of(PAIR, (TEACHER,), PROMPTS))
KEYS = [call.key for call in CALLS]


def answer(magnitude: float = 0.5) -> str:
    return json.dumps({"semantic_gap_category": "Style", "semantic_gap_magnitude": magnitude,
                       "semantic_gap_confidence": 1.0})  # fmt: skip


def ok(text: str = answer()) -> Reply:
    return Reply(Outcome.OK, text=text, usage=Usage(100, 20), raw="{...}")


def attempt(call: Call, reply: Reply | None, *, worst: float = 0.0) -> list[Entry]:
    """What one attempt leaves; without a reply it was cut off."""
    intent = intent_entry(call, 1, worst)
    if reply is None:
        return [intent]
    return [intent, result_entry(intent, reply, seconds=1.0, money={"usd": 0.25})]


def write(place: Place, *entries: Entry) -> None:
    async def append() -> None:
        segment = Segment(place, "t")
        for entry in entries:
            await segment.append(entry)
        segment.close()

    asyncio.run(append())


def record_of(place: Place) -> Record:
    return read_record(Journal(place).new_entries())


def answers_of(place: Place) -> dict[str, tuple[str, str]]:
    answers = Answers(Journal(place).new_entries())
    found = {key: (one.outcome, one.text) for key, one in answers.get(KEYS).items()}
    answers.close()
    return found


def only_file(folder: Path) -> Path:
    (path,) = folder.rglob("*.jsonl")
    return path


def test_a_torn_last_line_is_tolerated_at_every_byte_and_counted(tmp_path: Path) -> None:
    place = Folder(tmp_path)
    write(place, *attempt(CALLS[0], ok()), *attempt(CALLS[1], ok()))
    path = only_file(tmp_path)
    whole = path.read_bytes()
    last = whole[:-1].rindex(b"\n") + 1
    for cut in range(last, len(whole)):
        path.write_bytes(whole[:cut])
        journal = Journal(place)
        record = read_record(journal.new_entries())
        assert record.settled(KEYS) == [True, False, False]
        assert record.unanswered == 1  # its intent is there
        assert journal.torn == (cut > last)
    path.write_bytes(whole)
    assert record_of(place).settled(KEYS) == [True, True, False]


def test_any_changed_byte_is_refused(tmp_path: Path) -> None:
    """Each byte of each line in turn; only the last line break makes a torn line of a whole one."""
    place = Folder(tmp_path)
    write(place, *attempt(CALLS[0], ok()), *attempt(CALLS[1], ok()))
    path = only_file(tmp_path)
    whole = path.read_bytes()
    draw = random.Random(0)
    for position in range(len(whole) - 1):
        changed = bytearray(whole)
        changed[position] ^= draw.randrange(1, 256)
        path.write_bytes(changed)
        with pytest.raises(ArtifactError, match=r"\.jsonl: the line at byte \d+ was altered"):
            record_of(place)


def test_a_line_taken_out_put_in_or_moved_is_refused(tmp_path: Path) -> None:
    place = Folder(tmp_path)
    write(place, *attempt(CALLS[0], ok()), *attempt(CALLS[1], ok()))
    path = only_file(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    for other in (lines[1:], [lines[0], *lines[2:]], [lines[1], lines[0], *lines[2:]],
                  [lines[0], *lines]):  # fmt: skip
        path.write_bytes(b"".join(other))
        with pytest.raises(ArtifactError, match="was altered"):
            record_of(place)


def test_reading_goes_on_where_it_stopped(tmp_path: Path) -> None:
    place = Folder(tmp_path)
    journal = Journal(place)

    async def run() -> None:
        segment = Segment(place, "t")
        assert list(journal.new_entries()) == []
        for call in CALLS:
            for entry in attempt(call, ok()):
                await segment.append(entry)
            assert read_record(journal.new_entries()).settled([call.key]) == [True]
            assert list(journal.new_entries()) == []  # nothing new

    asyncio.run(run())


@pytest.mark.parametrize("outcome", list(Outcome))
def test_only_settled_outcomes_are_never_asked_again(tmp_path: Path, outcome: Outcome) -> None:
    write(Folder(tmp_path), *attempt(CALLS[0], Reply(outcome)))
    settled = outcome in {Outcome.OK, Outcome.PARSE_ERROR, Outcome.REFUSAL, Outcome.FILTERED,
                          Outcome.TRUNCATED}  # fmt: skip
    assert record_of(Folder(tmp_path)).settled(KEYS[:1]) == [settled]


def test_of_two_answers_the_first_counts_in_whatever_file_it_stands(tmp_path: Path) -> None:
    place = Folder(tmp_path)
    first, second = attempt(CALLS[0], ok("first")), attempt(CALLS[0], ok("second"))
    write(place, *second)
    write(place, *first)
    for path in tmp_path.rglob("*.jsonl"):  # whichever is read first
        path.rename(path.with_name("a" + path.name if b"first" in path.read_bytes() else "b"))
    for path in tmp_path.rglob("b"):
        path.rename(path.with_name("b.jsonl"))
    assert answers_of(place)[KEYS[0]] == ("ok", "first")


def test_a_failure_is_on_record_until_an_answer_comes(tmp_path: Path) -> None:
    place = Folder(tmp_path)
    write(place, *attempt(CALLS[0], Reply(Outcome.QUOTA)),
          *attempt(CALLS[0], Reply(Outcome.TRANSPORT)))  # fmt: skip
    assert answers_of(place)[KEYS[0]][0] == "transport"
    write(place, *attempt(CALLS[0], ok("answer")), *attempt(CALLS[0], Reply(Outcome.QUOTA)))
    assert answers_of(place)[KEYS[0]] == ("ok", "answer")


texts = st.text(st.characters(codec=None), max_size=200)


@given(text=texts, detail=texts)
@settings(max_examples=100)
def test_any_text_survives_the_journal(
    text: str, detail: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = Folder(tmp_path_factory.mktemp("journal"))
    reply = Reply(Outcome.OK, text=text, detail=detail, raw=text * 2)
    write(place, *attempt(CALLS[0], reply))
    (result,) = [e for e in Journal(place).new_entries() if e["kind"] == "result"]
    assert (result.get("text", ""), result.get("detail", "")) == (text, detail)
    assert result.get("raw", "") == text * 2


def test_money_counts_results_by_usage_and_cut_off_attempts_at_their_worst(tmp_path: Path) -> None:
    place = Folder(tmp_path)
    write(place, *attempt(CALLS[0], ok(), worst=2.0), *attempt(CALLS[1], None, worst=3.0))
    lost = attempt(CALLS[2], Reply(Outcome.TRANSPORT, maybe_billed=True))
    lost[1] = {name: value for name, value in lost[1].items() if name != "usd"}
    write(place, lost[0], lost[1] | {"possibly_usd": 0.5})
    record = record_of(place)
    assert record.usd == 0.25 + 3.0 + 0.5
    assert record.spent["t"].usd == 0.25
    assert record.unanswered == 1
    assert (record.spent["t"].prompt_tokens, record.spent["t"].answers) == (100, 1)


def state_of(place: Place) -> tuple[Any, ...]:
    record = record_of(place)
    return (record.settled(KEYS), record.usd, record.unanswered, answers_of(place))


def mixed(place: Place) -> None:
    write(place, *attempt(CALLS[0], Reply(Outcome.TRANSPORT)), *attempt(CALLS[0], ok("one")))
    write(place, *attempt(CALLS[1], ok("two"), worst=1.0), *attempt(CALLS[2], None, worst=3.0))
    write(place, *attempt(CALLS[0], ok("late")))


def test_merging_keeps_answers_money_and_cut_off_attempts(tmp_path: Path) -> None:
    place = Folder(tmp_path)
    mixed(place)
    before = state_of(place)
    figures = merge_segments(place)
    assert (figures["files_before"], figures["files_after"]) == (3, 1)
    assert figures["bytes_after"] < figures["bytes_before"]
    assert state_of(place) == before
    assert merge_segments(place)["files_before"] == 1  # nothing left to merge
    assert state_of(place) == before
    write(place, *attempt(CALLS[2], ok("three")))
    merge_segments(place)
    assert answers_of(place)[KEYS[2]] == ("ok", "three")
    assert len(list(tmp_path.rglob("*.jsonl"))) == 1


def test_a_merge_that_was_cut_off_counts_nothing_twice(tmp_path: Path) -> None:
    """Killed after the merged file was written and before any of the old ones was removed."""
    place = Folder(tmp_path)
    mixed(place)
    before = state_of(place)
    old = {path: path.read_bytes() for path in tmp_path.rglob("*.jsonl")}
    merge_segments(place)
    for kept in range(1, 1 << len(old)):  # any of them may still be there
        for number, (path, content) in enumerate(old.items()):
            path.unlink(missing_ok=True)
            if kept >> number & 1:
                path.write_bytes(content)
        assert state_of(place) == before
    # and what a writer adds to one of them afterwards is read
    path, content = next(iter(old.items()))
    assert merge_segments(place)["files_after"] == 1
    assert state_of(place) == before


def test_a_segment_that_grows_while_it_is_merged_loses_nothing(tmp_path: Path) -> None:
    place = Folder(tmp_path)

    async def run() -> None:
        writer = Segment(place, "t")
        for entry in attempt(CALLS[0], ok("one")):
            await writer.append(entry)
        old = {path: path.read_bytes() for path in tmp_path.rglob("*.jsonl")}
        merge_segments(place)
        (path,) = old  # as if it had not been removed, since it grew at the last moment
        path.write_bytes(old[path])
        grown = path.open("ab", buffering=0)
        writer._file = grown
        for entry in attempt(CALLS[1], ok("two")):
            await writer.append(entry)

    asyncio.run(run())
    assert {key: text for key, (_, text) in answers_of(place).items()} == {
        KEYS[0]: "one", KEYS[1]: "two"
    }  # fmt: skip
    assert record_of(place).usd == 0.5


def test_a_merged_file_that_was_cut_off_stands_for_nothing(tmp_path: Path) -> None:
    """Cut anywhere, with what it would stand for still there; the next merge clears it."""
    place = Folder(tmp_path)
    mixed(place)
    before = state_of(place)
    old = {path: path.read_bytes() for path in tmp_path.rglob("*.jsonl")}
    merge_segments(place)
    merged = only_file(tmp_path)
    whole = merged.read_bytes()
    for path, content in old.items():
        path.write_bytes(content)
    for cut in (1, *range(10, len(whole), 61), len(whole) - 1):
        merged.write_bytes(whole[:cut])
        assert state_of(place) == before, cut
    merged.write_bytes(whole[:-5])
    assert merge_segments(place)["files_after"] == 1
    assert state_of(place) == before


def test_an_altered_head_of_a_merged_file_is_refused(tmp_path: Path) -> None:
    place = Folder(tmp_path)
    mixed(place)
    merge_segments(place)
    path = only_file(tmp_path)
    path.write_bytes(path.read_bytes().replace(b'"merged"', b'"margin"', 1))
    with pytest.raises(ArtifactError, match="its first line was altered"):
        record_of(place)


def test_a_record_grows_by_what_came_later(tmp_path: Path) -> None:
    place = Folder(tmp_path)
    journal = Journal(place)
    write(place, *attempt(CALLS[0], ok(answer(0.2))))
    record = read_record(journal.new_entries(), with_gaps=True)
    write(place, *attempt(CALLS[1], ok(answer(0.4))), *attempt(CALLS[2], ok("nonsense")))
    record.add(read_record(journal.new_entries(), with_gaps=True))
    assert record.settled(KEYS) == [True, True, True]
    whole = read_record(Journal(place).new_entries(), with_gaps=True)
    assert record.keys.tolist() == whole.keys.tolist()
    assert sorted(map(str, record.gaps)) == sorted(map(str, whole.gaps)) == ["0.2", "0.4", "nan"]
    assert record.usd == whole.usd == 0.75


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 2, 0]])
def test_a_job_with_an_id_wins_over_a_look_that_did_not_find_it(order: list[int]) -> None:
    """Another command looked for it in the moment before it was created."""
    intent = attempt(CALLS[0], None, worst=1.0)[0] | {"job": "k"}
    about = {"token": "k", "teacher": "t", "calls": 1, "time": 0.0}
    notes = [about | {"kind": "job", "job": None}, about | {"kind": "job_done", "job": None},
             about | {"kind": "job", "job": "batch_1"}]  # fmt: skip
    record = read_record([intent, *(notes[n] for n in order)])
    assert (record.jobs["k"].id, record.usd) == ("batch_1", 1.0)
    assert read_record([intent, *notes[:2]]).jobs == {}
    taken = about | {"kind": "job_done", "job": "batch_1"}
    assert read_record([intent, *notes, taken]).jobs == {}


def test_one_command_at_a_time_works_on_a_journal(demo_config: Path, tmp_path: Path) -> None:
    """Each reads the record once, and would pay for what the other has asked since."""
    shared = tmp_path / "shared"
    overrides = (f"annotate.journal={shared}", "data.limit=2", "data.eval_fraction=0")
    run = Run(load_config(str(demo_config), overrides))
    STAGES["prepare"](run)
    with journal_held(Folder(shared)):
        for stage in ("annotate", "compact"):
            with pytest.raises(Stopped, match=r"another command is working on .*/shared; wait"):
                STAGES[stage](run)
    assert STAGES["compact"](run)["files_after"] == 0
    elsewhere = cast(Place, object())  # no folder: nothing is held
    with journal_held(elsewhere), journal_held(elsewhere):
        pass


def test_every_settled_outcome_is_known() -> None:
    assert {str(outcome) for outcome in SETTLED} == {
        "ok", "parse_error", "refusal", "filtered", "truncated"
    }  # fmt: skip


class FullDisk:
    """A file that takes some bytes of a line, and then none."""

    def __init__(self, file: Any, takes: int) -> None:
        self._file, self._takes = file, takes

    def write(self, line: Any) -> int:
        if not self._takes:
            raise OSError(28, "No space left on device")
        taken, self._takes = bytes(line[: self._takes]), 0
        self._file.write(taken)
        return len(taken)

    def close(self) -> None:
        self._file.close()


@pytest.mark.parametrize("takes", [0, 100])
def test_a_full_disk_spoils_no_line_but_its_own(tmp_path: Path, takes: int) -> None:
    place = Folder(tmp_path)
    first, lost, later = (attempt(call, None)[0] for call in CALLS[:3])

    async def append() -> None:
        segment = Segment(place, "t")
        await segment.append(first)
        segment._file = FullDisk(segment._file, takes)
        with pytest.raises(OSError, match="No space left"):
            await segment.append(lost)
        await segment.append(later)  # room was made
        segment.close()

    asyncio.run(append())
    journal = Journal(place)
    found = {entry["id"] for entry in journal.new_entries()}
    assert found == {first["id"], later["id"]}
    assert journal.torn == (takes > 0)


class Slow(Folder):
    """Gives a few bytes at a time, as a store may."""

    def open(self, name: str) -> Any:
        file = super().open(name)

        class Few:
            seek = staticmethod(file.seek)

            def read(self, count: int) -> bytes:
                return bytes(file.read(min(count, 64)))

            def __enter__(self) -> Any:
                return self

            def __exit__(self, *_: Any) -> None:
                file.close()

        return Few()


def test_a_merged_file_may_begin_with_a_line_longer_than_a_chunk(tmp_path: Path) -> None:
    for call in CALLS:  # a file each, all named in the merged one's first line
        write(Folder(tmp_path), *attempt(call, ok()))
    merge_segments(Slow(tmp_path))
    assert [path.name[:7] for path in (tmp_path / "t").iterdir()] == ["merged-"]
    answered = [e["key"] for e in Journal(Slow(tmp_path)).new_entries() if e["kind"] == "result"]
    assert sorted(answered) == sorted(KEYS)


def test_what_is_appended_during_a_merge_is_read_once(tmp_path: Path) -> None:
    place = Folder(tmp_path)
    write(place, *attempt(CALLS[0], ok()))
    (name,) = place.files(".jsonl")

    class Grows(Folder):
        def put_file(self, target: str, source: Any) -> None:
            text = (tmp_path / name).read_bytes()
            crc = int(text[-11:-3], 16)
            line, _ = write_line(attempt(CALLS[1], ok())[0], crc)
            (tmp_path / name).write_bytes(text + line)
            super().put_file(target, source)

    merge_segments(Grows(tmp_path))
    keys = [entry["key"] for entry in Journal(place).new_entries() if "key" in entry]
    assert sorted(keys) == sorted([KEYS[0], KEYS[1]])
