"""Features: closed forms on small texts, batches of any size alike, exchange of the responses."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sp2dpo_ray.core.pairs import TURNS
from sp2dpo_ray.distill.features import (
    BYTES,
    COMMON,
    RESPONSE,
    WORDS,
    Features,
    features_of,
    known_words,
)
from sp2dpo_ray.distill.texts import Texts, texts_of

TEXT = st.text(st.characters(codec="utf-8"), max_size=60)


def texts(*rows: tuple[str, str, str]) -> Texts:
    return Texts(*(pa.array(column, pa.string()) for column in zip(*rows, strict=True)))


def same(one: Features, other: Features) -> None:
    for name in ("common", "first", "second", "unknown"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    for name in ("first_grams", "second_grams"):
        np.testing.assert_allclose(
            getattr(one, name).toarray(), getattr(other, name).toarray(), rtol=1e-6
        )


def test_a_response_is_counted_as_a_person_would() -> None:
    found = features_of(texts(("Why is 2 even?", "Sorry, I might NOT know.\n- 42!", "Two is two")))
    first = dict(zip(RESPONSE, found.first[0], strict=True))
    words = ["sorry,", "i", "might", "not", "know.", "-", "42!"]
    assert first["log_words"] == pytest.approx(np.log1p(len(words)))
    assert first["log_bytes"] == pytest.approx(np.log1p(len("Sorry, I might NOT know.\n- 42!")))
    counts = {"digits": 2, "capitals": 5, "points": 1, "lines": 1, "commas": 1, "exclamations": 1}
    assert {name: round(np.expm1(first[name])) for name in BYTES} == dict.fromkeys(
        BYTES, 0
    ) | counts
    told = {"refusal": 1, "first_person": 1, "hedge": 1, "negation": 1, "bullets": 1}
    assert {name: round(first[name] * len(words)) for name in WORDS} == dict.fromkeys(
        WORDS, 0
    ) | told
    second = dict(zip(RESPONSE, found.second[0], strict=True))
    assert second["distinct"] == pytest.approx(2 / 3)  # two, is
    assert second["of_prompt"] == pytest.approx(1 / 2)  # is
    common = dict(zip(COMMON, found.common[0], strict=True))
    assert common["overlap"] == 0
    assert np.expm1(common["prompt_questions"]) == pytest.approx(1)


@given(st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=1, max_size=7), st.integers(1, 7))
@settings(max_examples=60, deadline=None)
def test_a_row_depends_on_its_own_texts_alone(rows: list[tuple[str, str, str]], cut: int) -> None:
    whole = features_of(texts(*rows))
    for start in range(0, len(rows), cut):
        part = features_of(texts(*rows[start : start + cut]))
        here = slice(start, start + cut)
        same(part, Features(
            whole.common[here], whole.first[here], whole.second[here],
            whole.first_grams[here], whole.second_grams[here], whole.words, whole.unknown[here],
        ))  # fmt: skip
    sliced = texts(("x", "y", "z"), *rows).slice(1, len(rows))  # offsets that do not begin at 0
    same(features_of(sliced), whole)


@given(st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=1, max_size=4))
@settings(max_examples=30, deadline=None)
def test_exchanged_responses_are_the_swapped_features(rows: list[tuple[str, str, str]]) -> None:
    one = features_of(texts(*rows))
    other = features_of(texts(*((p, worse, better) for p, better, worse in rows)))
    scores = np.random.default_rng(0).normal(size=(len(rows), 2)).astype(np.float32)
    np.testing.assert_array_equal(one.dense(scores, swapped=True), other.dense(-scores))
    weights = np.random.default_rng(1).normal(size=(one.first_grams.shape[1], 2))
    np.testing.assert_allclose(one.scores(weights), -other.scores(weights), rtol=1e-5, atol=1e-6)


def test_grams_are_words_and_neighbours_of_length_one() -> None:
    found = features_of(texts(("p", "red green blue", "red")))
    assert found.first_grams.nnz == 3 + 2
    assert np.linalg.norm(found.first_grams.toarray()) == pytest.approx(1)
    assert found.second_grams.nnz == 1


def test_words_that_training_has_not_seen_are_told() -> None:
    known = known_words(features_of(texts(("p", "one two", "three four"))))
    found = features_of(texts(("p", "one two", "three"), ("p", "eins zwei", "one drei")), known)
    assert found.unknown.tolist() == [0.0, 0.75]


def test_the_prompt_is_all_its_turns_whatever_slice_of_a_table() -> None:
    turns = [[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
             [{"role": "user", "content": "c"}], []]  # fmt: skip
    table = pa.table({
        "prompt": pa.array(turns, TURNS), "chosen": ["x", "y", "z"], "rejected": ["u", "v", "w"],
    })  # fmt: skip
    assert texts_of(table).prompt.to_pylist() == ["a\n\nb", "c", ""]
    part = texts_of(table.slice(1))
    assert (part.prompt.to_pylist(), part.chosen.to_pylist()) == (["c", ""], ["y", "z"])
    assert len(features_of(part.slice(0, 0))) == 0
