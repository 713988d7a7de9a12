"""What may be left out (proved by trying everything), what is masked, what a call costs."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sp2dpo_ray.core.annotation import Outcome
from sp2dpo_ray.core.arms import parse_arm
from sp2dpo_ray.core.calls import TeacherIdentity, calls_of
from sp2dpo_ray.core.costs import Price, Usage, likely_prompt_tokens, most_prompt_tokens
from sp2dpo_ray.core.economy import median_bounds, needed_first, settled
from sp2dpo_ray.core.pairs import Pair
from sp2dpo_ray.core.prompts import load_prompts
from sp2dpo_ray.core.redaction import redact, redact_pair
from sp2dpo_ray.core.schedule.build import build_schedule
from sp2dpo_ray.core.schedule.ensemble import mean_over_teachers, median_over_prompts
from sp2dpo_ray.core.schedule.grid import Panel
from sp2dpo_ray.core.schedule.mapping import BetaMap
from sp2dpo_ray.core.schedule.reading import ANNOTATION_SCHEMA
from sp2dpo_ray.core.schedule.recipe import Recipe
from sp2dpo_ray.errors import DataError

MAP = BetaMap()
GRID = np.linspace(0.0, 1.0, 21)
gaps = st.floats(0.0, 1.0)


@pytest.mark.parametrize("known", list(itertools.combinations_with_replacement(GRID[::4], 2)))
def test_two_answers_bound_the_third(known: tuple[float, float]) -> None:
    """Every third answer on a grid: the median stays between the two, and reaches both."""
    low, present, high = median_bounds(list(known), 3)
    assert (low, high) == (min(known), max(known))
    assert present == pytest.approx(sum(known) / 2)
    medians = [float(np.median([*known, third])) for third in GRID]
    assert (min(medians), max(medians)) == (low, high)


@given(known=st.lists(gaps, min_size=1, max_size=5), variants=st.integers(1, 7), data=st.data())
def test_the_bounds_hold_for_any_number_of_variants(
    known: list[float], variants: int, data: st.DataObject
) -> None:
    known = known[:variants]
    low, _, high = median_bounds(known, variants)
    missing = variants - len(known)
    rest = data.draw(st.lists(gaps, min_size=missing, max_size=missing))
    assert low <= float(np.median(known + rest)) <= high


@given(
    answers=st.lists(st.tuples(gaps, gaps, gaps), min_size=1, max_size=4),
    eps=st.sampled_from([0.0, 0.001, 0.01, 0.05]),
)
def test_leaving_out_moves_the_pair_by_eps_at_most(
    answers: list[tuple[float, float, float]], eps: float
) -> None:
    """However many teachers are cut short, against all answers (Eqs. 15 to 18)."""
    full = np.array([answers])
    cut = full.copy()
    for j, (first, second, _) in enumerate(answers):
        if settled([first, second], 3, MAP, eps):
            cut[0, j, 2] = np.nan
    betas = [float(mean_over_teachers(MAP(median_over_prompts(each)))[0]) for each in (full, cut)]
    assert abs(betas[0] - betas[1]) <= eps + 1e-12


def test_equal_answers_are_exact_and_one_answer_is_never_enough() -> None:
    assert settled([0.4, 0.4], 3, MAP, 0.0)
    assert not settled([0.4, 0.5], 3, MAP, 0.0)
    assert settled([0.4, 0.5], 3, MAP, 0.0135 + 1e-12)  # half of 0.1 x 0.27
    assert not settled([0.4], 3, MAP, 0.05)
    assert not settled([], 3, MAP, 1.0)
    assert [needed_first(k) for k in (1, 2, 3, 4, 5)] == [1, 2, 2, 3, 3]


def annotations(rows: list[tuple[str, str, str, str, float | None]]) -> pa.Table:
    return pa.Table.from_pylist(
        [
            {"prompt_id": pair, "split": "train", "teacher": teacher, "variant": variant,
             "outcome": outcome, "magnitude": gap, "confidence": None if gap is None else 1.0,
             "category": None if gap is None else "Style"}
            for pair, teacher, variant, outcome, gap in rows
        ],
        schema=ANNOTATION_SCHEMA,
    )  # fmt: skip


def test_skipped_calls_leave_their_columns_empty_and_the_pair_in_the_schedule() -> None:
    panel = Panel(("t", "u"), ("v1", "v2", "v3"))
    rows = [("p", "t", v, "ok", g) for v, g in (("v1", 0.4), ("v2", 0.4))]
    rows += [("p", "t", "v3", str(Outcome.SKIPPED), None)]
    rows += [("p", "u", v, "ok", g) for v, g in (("v1", 0.1), ("v2", 0.5), ("v3", 0.9))]
    rows += [("q", "t", v, str(Outcome.SKIPPED), None) for v in panel.variants]  # none at all
    rows += [("q", "u", v, "ok", 0.5) for v in panel.variants]
    made = build_schedule(annotations(rows), Recipe(panel))
    (row,) = made.table.to_pylist()
    assert row["prompt_id"] == "p"
    empty = {name for name, value in row.items() if value is None}
    assert empty == {"category_t_v3", "magnitude_t_v3", "confidence_t_v3", "effective_gap_t_v3",
                     "beta_t_v3", "beta_annotators_mean_v3"}  # fmt: skip
    assert row["effective_gap_t_ens"] == 0.4
    assert row["category_t_ens"] == "Style"
    assert row["beta_annotators_mean_ens"] == pytest.approx(float(MAP(np.array([0.4, 0.5])).mean()))
    assert [excluded["prompt_id"] for excluded in made.excluded.to_pylist()] == ["q"]
    # an arm on an emptied column is refused with its reason
    with pytest.raises(DataError, match=r"beta_t_v3 must be a positive number.*early_stop"):
        parse_arm("sa-t-v3").betas(made.table, Recipe(panel), ["p"])


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("mail bob.smith+x@mail.example.co.uk now", "mail [EMAIL] now"),
        ("call +1 (555) 123-4567, +49 30 901820", "call [PHONE], [PHONE]"),
        ("555-123-4567 or (020) 7946 0958 or 030 1234 5678", "[PHONE] or [PHONE] or [PHONE]"),
        ("key sk-abcdEFGH1234567890abcd.", "key [KEY]."),
        # pragma: allowlist nextline secret
        ("AKIAIOSFODNN7EXAMPLE and ghp_16C7e42F292c6912E7710c838347Ae178B4a",
         "[KEY] and [KEY]"),
        # pragma: allowlist nextline secret
        ("token eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc-_9", "token [KEY]"),
        ("hash d41d8cd98f00b204e9800998ecf8427e", "hash [KEY]"),
        # and what is none of these stays
        ("on 2024-05-06, 1,234,567 people, 10.0.0.1, v3.11.7", None),
        ("pi is 3.141592653589793, 12345678901234567890", None),
        ("a@b is no address, nor is @handle; 555-0199", None),
        ("antidisestablishmentarianismandothers", None),
        ("between 1990-2000 and 100-200", None),
    ],
)  # fmt: skip
def test_what_is_masked_and_what_is_not(text: str, masked: str | None) -> None:
    assert redact(text)[0] == (masked or text)


@given(text=st.text(max_size=300))
def test_masking_twice_changes_nothing(text: str) -> None:
    once = redact(text)[0]
    assert redact(once)[0] == once


def test_a_masked_pair_is_what_the_call_carries() -> None:
    pair = Pair("p", [{"role": "user", "content": "I am a@b.org"}], "Call +1 555 123 4567", "no")
    masked, found = redact_pair(pair)
    assert dict(found) == {"email": 1, "phone": 1}
    teacher = TeacherIdentity("t", "openai", "m", {})
    prompts = load_prompts(("v1",))
    (call,) = calls_of(pair, (teacher,), prompts, redact=True)
    assert "a@b.org" not in json.dumps(call.messages)
    assert call == next(calls_of(masked, (teacher,), prompts))
    assert call.key != next(calls_of(pair, (teacher,), prompts)).key


def test_the_worst_case_is_one_token_a_byte(demo_rows: list[dict[str, str]]) -> None:
    """A token of a byte-level vocabulary is one byte at least."""
    price = Price(input=2.0, output=8.0, cached_input=0.5)
    teacher = TeacherIdentity("t", "openai", "m", {})
    prompts = load_prompts(("v1", "v2", "v3"))
    for row in demo_rows[:20]:
        pair = Pair(row["prompt_id"], [{"role": "user", "content": row["prompt"]}],
                    row["chosen"] + " 漢字 🦊", row["rejected"])  # fmt: skip
        for call in calls_of(pair, (teacher,), prompts):
            size = len(json.dumps(call.messages, ensure_ascii=False).encode())
            most = most_prompt_tokens(call.messages)
            assert most >= size - 40  # the JSON's own brackets are no text
            assert likely_prompt_tokens(call.messages) < most
            usage = Usage(prompt_tokens=most, completion_tokens=64)
            assert price.cost(usage) <= price.worst(call.messages, 64)


def test_cost_is_by_the_million_with_cached_tokens_apart() -> None:
    price = Price(input=2.0, output=8.0, cached_input=0.5)
    usage = Usage(prompt_tokens=1000, completion_tokens=100, reasoning_tokens=60, cached_tokens=400)
    assert price.cost(usage) == pytest.approx((600 * 2.0 + 400 * 0.5 + 100 * 8.0) / 1e6)
