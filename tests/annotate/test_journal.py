"""The journal: found again after any cut, refused when altered, first answer counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sp2dpo_ray.annotate.journal import Journal, Segment, recorded_results
from sp2dpo_ray.annotate.table import annotations_table, completeness
from sp2dpo_ray.core.annotation import Outcome
from sp2dpo_ray.core.calls import Call, TeacherIdentity, calls_of
from sp2dpo_ray.core.pairs import PAIR_FIELDS, Pair
from sp2dpo_ray.core.prompts import load_prompts
from sp2dpo_ray.errors import ArtifactError
from sp2dpo_ray.teachers.base import Reply

PROMPTS = load_prompts(("v1", "v2", "v3"))
TEACHER = TeacherIdentity("t", "offline", "rules", {})
PAIR = Pair("p", [{"role": "user", "content": "x"}], "a", "b")
CALLS: list[Call] = list(calls_of(PAIR, (TEACHER,), PROMPTS))


def answer(magnitude: float = 0.5) -> str:
    return json.dumps({"semantic_gap_category": "Style", "semantic_gap_magnitude": magnitude,
                       "semantic_gap_confidence": 1.0})  # fmt: skip


def write(folder: Path, *entries: tuple[Call, Reply | None]) -> Path:
    segment = Segment(folder / "t")
    for call, reply in entries:
        segment.record(call, 1, reply)
    segment.close()
    (path,) = (folder / "t").glob("*.jsonl")
    return path


def ok(text: str = answer()) -> Reply:
    return Reply(Outcome.OK, text=text)


def test_a_torn_last_line_is_tolerated_at_every_byte(tmp_path: Path) -> None:
    path = write(tmp_path, (CALLS[0], ok()), (CALLS[1], ok()))
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(first, len(whole)):
        path.write_bytes(whole[:cut])
        assert recorded_results(tmp_path).keys() == {CALLS[0].key}
    path.write_bytes(whole)
    assert recorded_results(tmp_path).keys() == {CALLS[0].key, CALLS[1].key}


def test_a_line_broken_before_the_end_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, (CALLS[0], ok()), (CALLS[1], ok()))
    path.write_bytes(path.read_bytes().replace(b'{"kind"', b'{"ki', 1).replace(b'"', b"", 1))
    with pytest.raises(ArtifactError, match=r"\.jsonl: a line was altered"):
        recorded_results(tmp_path)


def test_reading_goes_on_where_it_stopped(tmp_path: Path) -> None:
    segment = Segment(tmp_path / "t")
    journal = Journal(tmp_path)
    assert journal.settled_keys() == set()
    segment.record(CALLS[0], 1, ok())
    assert journal.settled_keys() == {bytes.fromhex(CALLS[0].key)}
    assert journal.settled_keys() == set()  # nothing new
    segment.record(CALLS[1], 1, ok())
    assert journal.settled_keys() == {bytes.fromhex(CALLS[1].key)}


@pytest.mark.parametrize("outcome", list(Outcome))
def test_only_settled_outcomes_are_never_asked_again(tmp_path: Path, outcome: Outcome) -> None:
    write(tmp_path, (CALLS[0], None), (CALLS[0], Reply(outcome)))
    settled = outcome in {Outcome.OK, Outcome.PARSE_ERROR, Outcome.REFUSAL, Outcome.FILTERED,
                          Outcome.TRUNCATED}  # fmt: skip
    assert bool(Journal(tmp_path).settled_keys()) == settled


def test_of_two_answers_the_first_counts(tmp_path: Path) -> None:
    write(tmp_path, (CALLS[0], ok("first")))
    write_again = Segment(tmp_path / "t")
    write_again.record(CALLS[0], 1, ok("second"))
    assert recorded_results(tmp_path)[CALLS[0].key].text == "first"


@given(text=st.text())
def test_any_text_survives_the_journal(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("journal")
    write(folder, (CALLS[0], ok(text)))
    assert recorded_results(folder)[CALLS[0].key].text == text


def test_a_failure_is_on_record_until_an_answer_comes(tmp_path: Path) -> None:
    write(tmp_path, (CALLS[0], Reply(Outcome.QUOTA)), (CALLS[0], Reply(Outcome.TRANSPORT)))
    assert recorded_results(tmp_path)[CALLS[0].key].outcome == "transport"
    later = Segment(tmp_path / "t")
    later.record(CALLS[0], 1, ok("answer"))
    later.record(CALLS[0], 1, Reply(Outcome.QUOTA))
    assert recorded_results(tmp_path)[CALLS[0].key].text == "answer"


def test_the_table_has_a_row_for_every_expected_call(tmp_path: Path) -> None:
    import pyarrow as pa

    write(tmp_path, (CALLS[0], ok()), (CALLS[1], ok("nonsense")))
    pairs: dict[str, Any] = {
        "train": pa.Table.from_pylist(
            [{"prompt_id": "p", "prompt": PAIR.prompt, "chosen": "a", "rejected": "b"}],
            schema=pa.schema(PAIR_FIELDS),
        )
    }
    table = annotations_table(pairs, (TEACHER,), PROMPTS, recorded_results(tmp_path))
    rows = {row["variant"]: row for row in table.to_pylist()}
    assert [row["outcome"] for row in rows.values()] == ["ok", "parse_error", "not_attempted"]
    assert (rows["v1"]["category"], rows["v1"]["magnitude"]) == ("Style", 0.5)
    assert rows["v2"]["text"] == "nonsense"  # raw text is kept, a better parser may read it
    assert completeness(table) == {
        "outcomes": {"not_attempted": 1, "ok": 1, "parse_error": 1},
        "pairs_complete": 0,
        "pairs_incomplete": 1,
    }
