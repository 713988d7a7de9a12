"""Reading every form of pairs, cleaning, and the split: what stays, what goes, and why."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sp2dpo_ray.core.pairs import Form, Pair, Rejected, detect_form, read_pairs
from sp2dpo_ray.core.prepare import prepare
from sp2dpo_ray.core.sources import read_source
from sp2dpo_ray.errors import ConfigError, DataError


def turns(*texts: str | None) -> list[dict[str, str | None]]:
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


def plain(*rows: tuple[str | None, str | None, str | None]) -> pa.Table:
    return pa.Table.from_pylist(
        [
            {"prompt_id": f"p{i}", "prompt": prompt, "chosen": chosen, "rejected": rejected}
            for i, (prompt, chosen, rejected) in enumerate(rows)
        ]
    )


def only(table: pa.Table) -> Any:
    (item,) = read_pairs(table)
    return item


ULTRAFEEDBACK = {"prompt": "Hi", "prompt_id": "a", "chosen": turns("Hi", "yes"),
                 "rejected": turns("Hi", "no"), "score_chosen": 8.0}  # fmt: skip
EXPLICIT = {"prompt_id": "a", "prompt": turns("Hi"), "chosen": [turns("", "yes")[1]],
            "rejected": [turns("", "no")[1]]}  # fmt: skip
RESPONSES_ALONE = {"prompt_id": "a", "prompt": "Hi", "chosen": [turns("", "yes")[1]],
                   "rejected": [turns("", "no")[1]]}  # fmt: skip
PLAIN = {"prompt_id": "a", "prompt": "Hi", "chosen": "yes", "rejected": "no"}
WHOLE_BEHIND_PROMPT = EXPLICIT | {"chosen": turns("Hi", "yes"), "rejected": turns("Hi", "no")}
HH = {"prompt_id": "a", "chosen": "\n\nHuman: Hi\n\nAssistant: yes",
      "rejected": "\n\nHuman: Hi\n\nAssistant: no"}  # fmt: skip


@pytest.mark.parametrize(
    ("row", "form"),
    [(ULTRAFEEDBACK, Form.CONVERSATIONS), (EXPLICIT, Form.TURNS_AND_PROMPT),
     (WHOLE_BEHIND_PROMPT, Form.TURNS_AND_PROMPT),
     (RESPONSES_ALONE, Form.CONVERSATIONS), (PLAIN, Form.PLAIN), (HH, Form.HH)],
)  # fmt: skip
def test_every_form_becomes_the_same_pair(row: dict[str, Any], form: Form) -> None:
    table = pa.Table.from_pylist([row])
    assert detect_form(table) is form
    assert only(table) == Pair("a", [{"role": "user", "content": "Hi"}], "yes", "no")


def test_hh_keeps_the_common_whole_turns_as_prompt() -> None:
    start = "\n\nHuman: One\n\nAssistant: Two\n\nHuman: Three, Human: not a turn"
    pair = only(
        pa.Table.from_pylist(
            [{"chosen": f"{start}\n\nAssistant: A b", "rejected": f"{start}\n\nAssistant: A c"}]
        )
    )
    assert [turn["content"] for turn in pair.prompt] == [
        "One", "Two", "Three, Human: not a turn"]  # fmt: skip
    assert (pair.chosen, pair.rejected) == ("A b", "A c")  # not cut inside the last turn
    assert pair.prompt_text.startswith("user: One\n\nassistant: Two")


def test_a_system_turn_before_the_response_keeps_the_question() -> None:
    system = {"role": "system", "content": "Be brief."}
    row = {"prompt": "Hi", "chosen": [system, *RESPONSES_ALONE["chosen"]],
           "rejected": [system, *RESPONSES_ALONE["rejected"]]}  # fmt: skip
    pair = only(pa.Table.from_pylist([row]))
    assert pair.prompt == [system, {"role": "user", "content": "Hi"}]
    assert (pair.chosen, pair.rejected) == ("yes", "no")


@pytest.mark.parametrize(
    "row",
    [{"chosen": HH["chosen"], "rejected": ""}, {"chosen": HH["chosen"], "rejected": None},
     {"chosen": turns("Hi", "yes"), "rejected": []}, {**EXPLICIT, "rejected": []}],
)  # fmt: skip
def test_a_side_without_a_turn_is_empty(row: dict[str, Any]) -> None:
    table = pa.Table.from_pylist([row, {**row, "rejected": row["chosen"]}])
    assert next(iter(read_pairs(table))).reason == "empty_rejected"


def test_contexts_that_differ_are_no_pair() -> None:
    row = {"chosen": turns("Hi", "yes"), "rejected": turns("Hello", "no")}
    assert only(pa.Table.from_pylist([row])).reason == "contexts_differ"


@pytest.mark.parametrize(
    ("row", "reason"),
    [(("  ", "a", "b"), "empty_prompt"), (("p", "\n\t", "b"), "empty_chosen"),
     (("p", "a", ""), "empty_rejected"), (("p", None, "b"), "empty_chosen"),
     ((None, "", ""), "empty_prompt+empty_chosen+empty_rejected"),
     (("p", "\u3000", "b"), "empty_chosen")],
)  # fmt: skip
def test_blank_parts_are_named(row: tuple[str, str, str], reason: str) -> None:
    schema = pa.schema([(name, pa.string()) for name in ("prompt", "chosen", "rejected")])
    names = ("prompt", "chosen", "rejected")
    table = pa.Table.from_pylist([dict(zip(names, row, strict=True))], schema=schema)
    assert only(table).reason == reason


def test_a_conversation_without_an_answer_has_no_chosen() -> None:
    row = {"chosen": turns("Hi"), "rejected": turns("Hi", "no")}
    item = only(pa.Table.from_pylist([row]))
    assert isinstance(item, Rejected)


def test_duplicates_keep_the_first_and_are_listed() -> None:
    table = pa.Table.from_pylist(
        [
            {"prompt_id": "x", "prompt": "p", "chosen": "first", "rejected": "b"},
            {"prompt_id": "y", "prompt": "q", "chosen": "a", "rejected": "b"},
            {"prompt_id": "x", "prompt": "p", "chosen": "second", "rejected": "b"},
        ]
    )
    made = prepare(table)
    assert made.train["chosen"].to_pylist() == ["first", "a"]
    assert made.excluded.to_pylist() == [{"prompt_id": "x", "reason": "duplicate_prompt_id"}]
    assert made.counts["duplicates_removed"] == 1


def test_rows_without_an_id_get_one_from_their_content() -> None:
    rows = [{"prompt": "p", "chosen": f"a{i}", "rejected": "b"} for i in (0, 1, 0)]
    made = prepare(pa.Table.from_pylist(rows))
    assert made.train.num_rows == 2  # the same texts twice are one pair
    again = prepare(pa.Table.from_pylist(rows[::-1]))
    assert set(made.train["prompt_id"].to_pylist()) == set(again.train["prompt_id"].to_pylist())


def test_scalar_columns_travel_with_their_pair() -> None:
    rows = [ULTRAFEEDBACK | {"prompt_id": str(i), "score_chosen": float(i)} for i in range(3)]
    rows[1] = rows[1] | {"chosen": turns("Hi", " ")}
    made = prepare(pa.Table.from_pylist(rows))
    assert made.train["score_chosen"].to_pylist() == [0.0, 2.0]


@given(
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.text(min_size=1, max_size=3)), min_size=2),
    st.floats(0, 0.9),
    st.randoms(use_true_random=False),
)
def test_the_split_is_by_prompt_and_ignores_row_order(
    rows: list[tuple[str, str]], fraction: float, random: Any
) -> None:
    items = [{"prompt": p, "chosen": f"c{c}{i}", "rejected": "r"} for i, (p, c) in enumerate(rows)]
    num_prompts = len({prompt for prompt, _ in rows})
    if round(fraction * num_prompts) == num_prompts:
        with pytest.raises(DataError, match="left to train on"):
            prepare(pa.Table.from_pylist(items), eval_fraction=fraction)
        return
    made = prepare(pa.Table.from_pylist(items), eval_fraction=fraction)
    sides = [
        {turn[0]["content"] for turn in side["prompt"].to_pylist()}
        for side in (made.train, made.evaluation)
    ]
    assert not sides[0] & sides[1]
    assert len(sides[1]) == round(fraction * num_prompts)
    random.shuffle(items)
    again = prepare(pa.Table.from_pylist(items), eval_fraction=fraction)
    assert set(again.train["prompt_id"].to_pylist()) == set(made.train["prompt_id"].to_pylist())


def test_prompts_of_the_evaluation_set_are_not_trained_on() -> None:
    train = plain(("seen", "a", "b"), ("new", "a", "b"))
    held_out = pa.Table.from_pylist(
        [{"prompt_id": "e", "prompt": "seen", "chosen": "c", "rejected": "d"}]
    )
    made = prepare(train, eval_source=held_out)
    assert [turn[0]["content"] for turn in made.train["prompt"].to_pylist()] == ["new"]
    assert made.excluded["reason"].to_pylist() == ["prompt_in_evaluation"]


def test_every_row_is_accounted_for() -> None:
    table = plain(("p", "a", "b"), ("", "a", "b"), ("q", "a", "b"), ("r", "a", ""))
    counts = prepare(table).counts
    assert counts["rows_in"] == counts["pairs"] + counts["eval_pairs"] + counts["excluded"]


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".json", ".csv"])
def test_every_file_format_gives_the_same_pairs(tmp_path: Path, suffix: str) -> None:
    rows = [
        {"prompt_id": "007", "prompt": 'a, "b"\nc', "chosen": "ü\u2028x", "rejected": "null"},
        {"prompt_id": "1e5", "prompt": "p", "chosen": "NA", "rejected": "3"},
    ]
    path = tmp_path / f"pairs{suffix}"
    table = pa.Table.from_pylist(rows)
    if suffix == ".parquet":
        pq.write_table(table, path)
    elif suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    elif suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        csv.write_csv(table, path)
    read = read_source(str(path), split=None, revision=None)
    assert [pair for pair in read_pairs(read)] == list(read_pairs(table))


def test_a_folder_is_read_as_one(tmp_path: Path) -> None:
    for i in range(2):
        pq.write_table(plain((f"p{i}", "a", "b")), tmp_path / f"part-{i}.parquet")
    assert read_source(str(tmp_path), split=None, revision=None).num_rows == 2


def test_texts_may_come_as_categories_or_views(tmp_path: Path) -> None:
    table = plain(("p", "a", "b"), ("q", "c", "d")).append_column("source", pa.array(["x", "y"]))
    for kind in (pa.dictionary(pa.int32(), pa.string()), pa.string_view()):
        columns = {name: table[name].cast(kind) for name in table.column_names}
        pq.write_table(pa.table(columns), tmp_path / "pairs.parquet")
        read = read_source(str(tmp_path / "pairs.parquet"), split=None, revision=None)
        assert list(read_pairs(read)) == list(read_pairs(table))
        assert prepare(read).train["source"].to_pylist() == ["x", "y"]


def test_files_that_do_not_go_together_are_named(tmp_path: Path) -> None:
    for name, value in (("a", 1), ("b", "one")):
        pq.write_table(pa.table({"prompt_id": [value]}), tmp_path / f"{name}.parquet")
    with pytest.raises(DataError, match=r"the files in .* differ in a column"):
        read_source(str(tmp_path), split=None, revision=None)
    (tmp_path / "c.jsonl").write_text(json.dumps(PLAIN | {"prompt_id": 1 << 70}))
    with pytest.raises(DataError, match=r"'prompt_id' .* a number that does not fit"):
        read_source(str(tmp_path / "c.jsonl"), split=None, revision=None)


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(PLAIN) + '\n{"prompt": "p", \n')
    with pytest.raises(DataError, match=r"pairs\.jsonl:2: not valid JSON"):
        read_source(str(path), split=None, revision=None)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [("a.jsonl", "[1]\n", "a.jsonl:1: must be a JSON object"),
     ("a.json", "{}", "must hold a list of objects"),
     ("a.parquet", "no parquet", "not a readable parquet file"),
     ("a.txt", "x", "must end in one of")],
)  # fmt: skip
def test_unreadable_files_are_refused(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        read_source(str(tmp_path / name), split=None, revision=None)


def test_a_missing_file_says_where_it_was_looked_for() -> None:
    with pytest.raises(DataError, match=r"no file or folder 'no/such\.parquet' \(looked in"):
        read_source("no/such.parquet", split=None, revision=None)


def test_a_hub_id_must_be_pinned() -> None:
    with pytest.raises(ConfigError, match=r"data\.revision: must pin"):
        read_source("some-organisation/some-set", split=None, revision=None)


def test_a_pinned_hub_set_is_read_at_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked: dict[str, Any] = {}

    def load(source: str, **options: Any) -> Any:
        asked.update(options, source=source)
        return datasets.Dataset.from_list([PLAIN | {"messages": ["unread"]}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    table = read_source("organisation/set", split="train_prefs", revision="0a1b")
    assert asked == {"source": "organisation/set", "split": "train_prefs", "revision": "0a1b"}
    assert "messages" not in table.column_names
    assert only(table).chosen == "yes"


@pytest.mark.parametrize(
    ("table", "message"),
    [(pa.table({"prompt": ["p"], "chosen": ["a"]}), "column 'rejected' is missing"),
     (pa.table({"chosen": [1], "rejected": [2]}), "chosen must be text"),
     (pa.table({"chosen": ["a"], "rejected": [2]}), "but rejected is int64"),
     (pa.table({"prompt": [1], "chosen": ["a"], "rejected": ["b"]}), "prompt must be text"),
     (pa.table({"chosen": ["a"], "rejected": ["b"]}), "row 0: cannot be read")],
)  # fmt: skip
def test_wrong_columns_are_named(table: pa.Table, message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(read_pairs(table))


def test_ultrafeedbacks_size_and_defects(real_data: Path) -> None:
    """61,135 rows lose 11 duplicates and 101 rows with an empty side; 61,023 remain."""
    start = time.perf_counter()
    source = read_source(str(real_data / "pairs_61135_raw.parquet"), split=None, revision=None)
    made = prepare(source, eval_fraction=0.05)
    print(f"prepared in {time.perf_counter() - start:.2f} s")
    assert made.counts["rows_in"] == 61_135
    assert made.counts["duplicates_removed"] == 11
    assert made.counts["empty_removed"] == 101
    assert made.counts["pairs"] + made.counts["eval_pairs"] == 61_023
    reasons = made.excluded["reason"].to_pylist()
    assert sum("empty_chosen" in reason for reason in reasons) == 37
    assert sum("empty_rejected" in reason for reason in reasons) == 75
    assert reasons.count("empty_chosen+empty_rejected") == 11


def test_evaluation_pairs_may_come_from_another_split_and_commit(
    demo_config: Path, demo_rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sp2dpo_ray.config import load_config
    from sp2dpo_ray.run import Run
    from sp2dpo_ray.stages import prepare as stage

    asked = []

    def read(source: str, *, split: str | None, revision: str | None) -> pa.Table:
        asked.append((source, split, revision))
        rows = demo_rows[:20] if len(asked) % 2 else demo_rows[20:30]
        return pa.Table.from_pylist(rows)

    monkeypatch.setattr(stage, "read_source", read)
    more = ("data.source=o/a", "data.revision=a1", "data.split=train_prefs", "data.eval_source=o/a")
    stage.prepare(Run(load_config(str(demo_config), more)))
    own = ("data.eval_split=test_prefs", "data.eval_revision=b2", "run.name=own")
    stage.prepare(Run(load_config(str(demo_config), (*more, *own))))
    assert asked == [
        ("o/a", "train_prefs", "a1"), ("o/a", "train_prefs", "a1"),
        ("o/a", "train_prefs", "a1"), ("o/a", "test_prefs", "b2"),
    ]  # fmt: skip
