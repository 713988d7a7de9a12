"""The strict reading of answers: what is accepted, and each rule that refuses."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sp2dpo_ray.core.annotation import ANSWER_KEYS, Annotation, Outcome, read_answer
from sp2dpo_ray.core.taxonomy import CATEGORIES, Category


def answer(category: object = "Safety", magnitude: object = 0.9, confidence: object = 0.5) -> str:
    return json.dumps(
        {
            "semantic_gap_category": category,
            "semantic_gap_magnitude": magnitude,
            "semantic_gap_confidence": confidence,
        }
    )


def test_a_plain_answer_is_read() -> None:
    assert read_answer(f"\n {answer()} \n").annotation == Annotation(Category.SAFETY, 0.9, 0.5)


@pytest.mark.parametrize(
    ("name", "category"),
    [("Truthfulness", Category.FACTUALITY), ("style / tone", Category.STYLE),
     ("  instruction   following ", Category.INSTRUCTION), ("REASONING", Category.REASONING)],
)  # fmt: skip
def test_known_aliases_are_mapped(name: str, category: Category) -> None:
    reading = read_answer(answer(name))
    assert reading.annotation is not None
    assert reading.annotation.category is category


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "not one JSON object"),
        ("I think Safety", "not one JSON object"),
        (f"```json\n{answer()}\n```", "not one JSON object"),
        (answer() + answer(), "not one JSON object"),
        (answer() + " done", "not one JSON object"),
        (answer()[:-1], "not one JSON object"),
        (f"[{answer()}]", "not a JSON object but list"),
        ("[" * 100_000, "nested too deeply"),
        (answer("Tastiness"), "not a known category"),
        (answer(["Safety"]), "not a known category"),
        (answer(magnitude="0.9"), "semantic_gap_magnitude is not a number"),
        (answer(magnitude=True), "semantic_gap_magnitude is not a number"),
        (answer(magnitude=None), "semantic_gap_magnitude is not a number"),
        (answer(confidence=1.01), "semantic_gap_confidence lies outside [0, 1]"),
        (answer(confidence=-0.0001), "semantic_gap_confidence lies outside [0, 1]"),
        (answer(confidence=float("nan")), "not a JSON number: NaN"),
        (answer(magnitude=float("inf")), "not a JSON number: Infinity"),
        (answer().replace("}", ', "beta": 0.3}'), "unknown ['beta']"),
        ('{"semantic_gap_category": "Safety"}', "missing"),
        (answer().replace("}", ', "semantic_gap_category": "Style"}'), "stands twice"),
    ],
)
def test_anything_else_names_the_broken_rule(text: str, rule: str) -> None:
    reading = read_answer(text)
    assert reading.outcome is Outcome.PARSE_ERROR
    assert reading.annotation is None
    assert rule in reading.detail


@given(
    st.sampled_from(CATEGORIES), st.floats(0, 1, allow_nan=False), st.floats(0, 1, allow_nan=False)
)
def test_numbers_survive_to_the_last_bit(category: Category, one: float, other: float) -> None:
    assert read_answer(answer(category, one, other)).annotation == Annotation(category, one, other)


@given(st.text() | st.recursive(st.none() | st.floats() | st.text(), st.lists).map(json.dumps))
def test_no_text_raises(text: str) -> None:
    reading = read_answer(text)
    assert (reading.annotation is None) == bool(reading.detail)


@given(st.dictionaries(st.sampled_from(sorted(ANSWER_KEYS)), st.integers() | st.text()))
def test_only_complete_objects_are_annotations(content: dict[str, object]) -> None:
    reading = read_answer(json.dumps(content))
    if reading.annotation is not None:
        assert content.keys() == ANSWER_KEYS


def test_a_number_of_thousands_of_digits_is_a_broken_answer() -> None:
    digits = "1" * 5000
    text = (f'{{"semantic_gap_category": "Style", "semantic_gap_magnitude": {digits}, '
            '"semantic_gap_confidence": 1}')  # fmt: skip
    found = read_answer(text)
    assert found.annotation is None
    assert "5000 digits" in found.detail
