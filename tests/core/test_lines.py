"""Files of JSON lines: a cut last line counts for nothing, and joins nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from sp2dpo_ray.core.lines import append_json_line, read_json_lines


@pytest.mark.parametrize("cut", range(1, 13))
def test_a_cut_last_line_was_not_written_and_joins_nothing(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "rows.jsonl"
    append_json_line(path, {"n": 1})
    append_json_line(path, {"n": "\u2028two"})
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    assert read_json_lines(path) == [{"n": 1}, *([{"n": "\u2028two"}] if cut == 1 else [])]
    before = read_json_lines(path)
    for number in (3, 4):
        append_json_line(path, {"n": number})
        before.append({"n": number})
        assert read_json_lines(path) == before


def test_a_line_in_the_middle_that_is_no_row_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"n": 1}\n{"n": \n{"n": 3}\n')
    with pytest.raises(ValueError, match="line 2 is no JSON"):
        read_json_lines(path)
    assert read_json_lines(tmp_path / "none.jsonl") == []
