"""The benchmarks' scores: published figures, what is read of a judge's text, what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sp2dpo_ray.errors import ConfigError, DataError
from sp2dpo_ray.evaluate import alpaca, arena_hard, ifeval, mt_bench
from sp2dpo_ray.evaluate.items import (
    Item,
    filled,
    judge_prompt,
    read_as,
    read_lines,
    stripped,
    swapped,
    whole,
)
from sp2dpo_ray.evaluate.judging import Verdict

SHARED = Path(__file__).parents[3] / "shared" / "data"
here = pytest.mark.skipif(not SHARED.exists(), reason="the benchmarks' data is not on this machine")


@here
def test_win_rates_of_forty_models_are_the_published_ones() -> None:
    folder = SHARED / "alpaca_eval"
    judged = pd.read_parquet(folder / "judged_lengths.parquet")
    published = pd.read_csv(folder / "published_leaderboard.csv", index_col=0)
    plain, controlled = [], []
    for name, part in judged.sort_values("index").groupby("generator_2"):
        rows = [
            {"preference": p, "output_1": "x" * a, "output_2": "x" * b,
             "generator_1": "gpt4_1106_preview", "generator_2": name}
            for p, a, b in zip(part.preference, part.len_1, part.len_2, strict=True)
        ]  # fmt: skip
        found = alpaca.figures(rows, folder / "df_gamed_estimated.csv")
        if name in published.index:
            row = published.loc[name]
            plain.append(found["win_rate"] - row["win_rate"])
            controlled.append(found["length_controlled_winrate"] - row["length_controlled_winrate"])
            assert found["standard_error"] == pytest.approx(row["standard_error"], abs=1e-6)
    assert len(plain) == 39
    assert np.abs(plain).max() < 1e-6
    assert np.abs(controlled).mean() < 0.8


@here
def test_ifeval_gives_gpt4s_published_accuracies() -> None:
    """Two prompts ask for a letter that is none (# and !), for which the checker draws one: the
    loose figures are one prompt and one instruction above the published ones."""
    folder = SHARED / "ifeval"
    items = ifeval.read_items(folder / "input_data.jsonl")
    lines = (folder / "responses_gpt4_20231107.jsonl").read_text().splitlines()
    given = {row["prompt"]: row["response"] for row in map(json.loads, lines)}
    answers = {item.id: (given[item.turns[0]],) for item in items}
    found = ifeval.score(items, answers)
    assert found.figures["prompt_strict"] == pytest.approx(77.22, abs=0.005)
    assert found.figures["instruction_strict"] == pytest.approx(83.77, abs=0.005)
    assert found.figures["prompt_loose"] == pytest.approx(79.63 + 100 / 540, abs=0.01)
    assert found.figures["instruction_loose"] == pytest.approx(85.58 + 100 / 832, abs=0.01)
    assert sum(found.values.values()) == 417  # type: ignore[arg-type]
    # the order of prompts decides nothing
    turned = ifeval.score(items[::-1], answers)
    assert turned.figures == found.figures


def test_sides_and_messages_are_the_packages_own() -> None:
    reference = [{"instruction": f"q{i}", "output": f"ref {i}", "generator": "r"} for i in range(9)]
    outputs = [row | {"output": f"mine {i}", "generator": "m"} for i, row in enumerate(reference)]
    outputs[0]["output"] = reference[0]["output"]  # identical: no call, a tie
    asked = alpaca.judge_messages(outputs, reference)
    assert len(asked) == 8
    first = [text.find("ref") < text.find("mine")
             for text in (messages[1]["content"] for messages in asked.values())]  # fmt: skip
    assert any(first)
    assert not all(first)
    choice = {"message": {"content": "m"}, "total_tokens": 0, "text": "m", "logprobs": {"content": [
        {"top_logprobs": [{"token": "m", "logprob": 0.0}]}]}}  # fmt: skip
    rows = alpaca.annotations(outputs, reference, dict.fromkeys(list(asked)[:5], choice))
    found = [row["preference"] for row in rows]
    assert found[0] == 1.5
    assert sum(value is None for value in found) == 3
    assert {value for value in found[1:] if value is not None} == {1.0, 2.0}
    assert [row["instruction"] for row in rows] == [row["instruction"] for row in reference]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[1:], "1 of 3 instructions have no output, 0 outputs belong to none"),
        (lambda rows: [*rows, {"instruction": "new", "output": "x"}], "1 outputs belong to none"),
        (lambda rows: [*rows, rows[0]], "the instruction 'q0' stands twice"),
        (lambda rows: [rows[0] | {"output": None}, *rows[1:]], "the output for 'q0' is no text"),
    ],
)
def test_outputs_that_do_not_fit_are_refused(change: Any, message: str) -> None:
    rows = [{"instruction": f"q{i}", "output": "x"} for i in range(3)]
    with pytest.raises(DataError, match=message):
        alpaca.check_outputs(change(rows), rows, "out.json")


def test_odd_outputs_are_counted() -> None:
    rows = [{"instruction": f"q{i}", "output": "x"} for i in range(3)]
    odd = [rows[0] | {"output": " "}, rows[1] | {"output": "a <|im_end|> b"}, rows[2]]
    checked = alpaca.check_outputs(odd, rows, "out.json")
    assert (checked.empty, checked.injections) == (1, 1)


@pytest.mark.parametrize(
    ("text", "grade"),
    [
        ("Good.\n8", 8.0),
        ("Good.\n\n10\n", 10.0),
        ("Fine.\nRating: 7", 7.0),
        ("x\n**9**", 9.0),
        ("x\n6/10", 6.0),
        ("x\n8.0", 8.0),
        ("It is [[7.5]] to me", 7.5),
        ("first [[3]], no: [[4]]", 4.0),
        ("8\nGood.", None),
        ("x\n0", None),
        ("x\n11", None),
        ("[[11]]", None),
        ("x\n7 or 8", None),
        ("", None),
    ],
)
def test_grades_are_read_strictly(text: str, grade: float | None) -> None:
    assert mt_bench.read_grade(text) == grade


def graded(text: str) -> Verdict:
    return Verdict("ok", text)


def test_mt_bench_is_the_mean_over_turns_and_counts_what_it_lacks() -> None:
    items = [Item(str(i), ("a", "b"), known={"category": c, "reference": None})
             for i, c in enumerate(("writing", "math", "math"))]  # fmt: skip
    verdicts = {
        ("0", "first"): graded("x\n8"), ("0", "second"): graded("x\n6"),
        ("1", "first"): graded("x\n3"), ("1", "second"): graded("no grade"),
        ("2", "first"): Verdict("refusal"), ("2", "second"): graded("x\n7"),
    }  # fmt: skip
    found = mt_bench.score(items, verdicts)
    assert found.figures["score"] == pytest.approx((8 + 6 + 3 + 7) / 4)
    assert found.figures["first_turn"] == pytest.approx(5.5)
    assert found.figures["score_math"] == pytest.approx(5.0)
    assert found.values == {"0": 7.0, "1": 3.0, "2": 7.0}
    assert found.notes == {"not_answered": 1, "not_read": 1}


@here
def test_mt_bench_asks_twice_and_shows_references_where_there_are_right_answers() -> None:
    folder = SHARED / "mt_bench"
    items = mt_bench.read_items(folder / "question.jsonl", folder / "reference_answers_gpt4.jsonl")
    answers = {item.id: ("one {question}", "two") for item in items}
    asked = mt_bench.questions_of(items, answers, None)
    assert len(asked) == 160
    texts = {(q.item, q.kind): q.messages[1]["content"] for q in asked}
    assert "[Correct answer" not in texts["81", "first"]
    assert "[Correct second answer" in texts["111", "second"]
    assert "one {question}" in texts["81", "second"]  # an answer fills no place
    with pytest.raises(DataError, match=r"question 101 \(reasoning\) is graded with a reference"):
        mt_bench.read_items(folder / "question.jsonl", None)


def test_arena_verdicts_are_seen_from_the_models_side() -> None:
    items = [Item(name, (name,), known={"baseline": "b"}) for name in ("p", "q", "r", "s")]
    verdicts = {
        ("p", arena_hard.FIRST): graded("so [[A>>B]]"),
        ("q", arena_hard.SECOND): graded("so [[A>B]]"),  # the baseline is A: a loss
        ("r", arena_hard.SECOND): graded("[[A=B]]"),
        ("s", arena_hard.FIRST): graded("[[A>B]] no, [[B>A]]"),
    }
    found = arena_hard.score(items, verdicts)
    assert found.values == {"p": 1.0, "q": 0.0, "r": 0.5, "s": None}
    assert found.figures["win_rate"] == pytest.approx(50)
    assert found.figures["share model>>baseline"] == pytest.approx(1 / 3)
    assert found.figures["share baseline>model"] == pytest.approx(1 / 3)
    assert found.notes == {"not_answered": 0, "not_read": 1}
    both = {("p", arena_hard.FIRST): graded("[[A>B]]"), ("p", arena_hard.SECOND): graded("[[A>B]]")}
    assert arena_hard.score(items[:1], both).values == {"p": 0.5}  # it prefers whoever is first


@here
def test_arena_items_are_joined_by_id_and_sides_are_fair() -> None:
    folder = SHARED / "arena_hard"
    items = arena_hard.read_items(
        folder / "question_v0.1.jsonl", folder / "answers_gpt-4-0314.jsonl"
    )
    first = swapped(items)
    assert len(first) == 500
    assert 210 < sum(first.values()) < 290
    assert swapped(items[::-1]) == first
    answers = {item.id: ("OWN-ANSWER",) for item in items}
    asked = arena_hard.questions_of(items, answers, None, both=False)
    for question in asked[:40]:
        text = question.messages[1]["content"]
        assert (text.find("OWN-ANSWER") < text.rfind("[Answer of assistant B: begin]")) == first[
            question.item
        ]
    assert len(arena_hard.questions_of(items, answers, None, both=True)) == 1000


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        ("```\nwhole\n```", "whole"),
        ("```python\nx = 1\n```", "x = 1"),
        ("text\n```", "text"),
        ("see:\n```\ncode\n```", "see:\n```\ncode\n```"),
        ("```\na\n```\nand\n```\nb\n```", "```\na\n```\nand\n```\nb\n```"),
        ("  plain ", "plain"),
        ("", ""),
    ],
)
def test_only_stray_fences_are_stripped(answer: str, kept: str) -> None:
    assert stripped(answer) == kept


def test_prompts_are_filled_in_one_pass(tmp_path: Path) -> None:
    assert filled("{a} and {b}", a="{b}", b="x") == "{b} and x"
    assert filled("{a} {unknown}", a="1") == "1 {unknown}"
    (tmp_path / "arena_hard.txt").write_text("own words\n")
    assert judge_prompt("arena_hard", tmp_path) == "own words"
    with pytest.raises(ConfigError, match=r"arena_hard_item\.txt is missing"):
        judge_prompt("arena_hard_item", tmp_path)
    for label in arena_hard.VALUES:
        assert f"[[{label}]]" in judge_prompt("arena_hard", None)


def test_a_hub_that_cannot_be_reached_says_which_file_to_name() -> None:
    code = (
        "from sp2dpo_ray.evaluate.alpaca import figures\n"
        "row = {'output_1': 'a', 'generator_1': 'x', 'generator_2': 'y'}\n"
        "figures([row | {'preference': 1 + i / 10, 'output_2': 'b' * i} for i in range(9)], None)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": "/nonexistent"},
    )  # fmt: skip
    assert done.returncode == 1
    assert "name a local copy in evaluate.alpaca_eval.gamed" in done.stderr


def judged(preferences: list[float | None], longer: list[int]) -> list[dict[str, Any]]:
    return [
        {"preference": p, "output_1": "x" * 50, "output_2": "y" * (50 + more),
         "generator_1": "reference", "generator_2": "model"}
        for p, more in zip(preferences, longer, strict=True)
    ]  # fmt: skip


def test_what_cannot_be_told_is_no_number() -> None:
    """Nothing judged, one judged, and lengths that all differ by the same; the package makes NaN of
    these, or divides by a deviation of 0."""
    none = alpaca.figures(judged([None] * 8, [*range(8)]), None)
    assert (none["win_rate"], none["length_controlled_winrate"]) == (None, None)
    one = alpaca.figures(judged([1.8, *[None] * 7], [*range(8)]), None)
    assert one["win_rate"] == pytest.approx(80.0)
    assert (one["standard_error"], one["length_controlled_winrate"]) == (None, None)
    flat = alpaca.figures(judged([1.0, 1.5, 2.0, 1.5], [7] * 4), None)
    assert (flat["win_rate"], flat["length_controlled_winrate"]) == (50.0, None)
    json.dumps([none, one, flat], allow_nan=False)


def test_the_reference_beside_itself_is_half(tmp_path: Path) -> None:
    rows = [row | {"output_2": row["output_1"]} for row in judged([1.5] * 6, [0] * 6)]
    found = alpaca.figures(rows, None)
    assert (found["win_rate"], found["length_controlled_winrate"]) == (50.0, 50.0)
    assert found["lc_standard_error"] == 0.0


def test_a_missing_checker_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "punkt", None)
    with pytest.raises(ConfigError, match=r"ifeval needs the package punkt.*\[evaluate\]"):
        ifeval.score([], {})


def test_answers_must_fit_the_questions() -> None:
    items = [Item("a", ("x", "y"))]
    with pytest.raises(DataError, match="1 of 1 questions have no answer, 1 answers belong"):
        whole(items, {"b": ("1",)}, "mt_bench")
    with pytest.raises(DataError, match="question a has 2 turns, 1 answers"):
        whole(items, {"a": ("1",)}, "mt_bench")


def test_what_nobody_judged_has_no_figure() -> None:
    items = [Item("0", ("a",), known={"category": "math", "reference": None})]
    found = mt_bench.score(items, {("0", "first"): graded("no grade")})
    assert found.figures["score"] is None
    assert found.values == {"0": None}
    json.dumps(found.figures, allow_nan=False)
    arena = [Item("p", ("p",), known={"baseline": "b"})]
    found = arena_hard.score(arena, {("p", arena_hard.FIRST): graded("who knows")})
    assert found.figures["win_rate"] is None


def test_a_line_ends_at_a_line_break_and_nowhere_else(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    rows = [{"text": "one\u2028two"}, {"text": "three\x0cfour\x85"}]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines), encoding="utf-8")
    assert read_lines(path) == rows


def test_a_file_of_another_form_is_named(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text('{"id": 1}\n')
    expected = r"questions.jsonl: an entry is not as IFEval.*'key'"
    with pytest.raises(DataError, match=expected), read_as("IFEval", path):
        ifeval.read_items(path)
