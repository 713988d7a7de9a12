"""The annotation prompts, the place of a pair in them, and the keys of calls."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sp2dpo_ray.core.annotation import ANSWER_KEYS
from sp2dpo_ray.core.calls import TeacherIdentity, call_key, calls_of
from sp2dpo_ray.core.pairs import Pair
from sp2dpo_ray.core.prompts import FENCE_LENGTH, fence, load_prompts
from sp2dpo_ray.core.taxonomy import CATEGORIES
from sp2dpo_ray.errors import ConfigError

VARIANTS = ("v1", "v2", "v3")
TEACHER = TeacherIdentity("qwen", "openai", "qwen-max", {"temperature": 0.1, "seed": 42})
PROMPTS = load_prompts(VARIANTS)


def pair(prompt: str = "p", chosen: str = "a", rejected: str = "b", name: str = "x") -> Pair:
    return Pair(name, [{"role": "user", "content": prompt}], chosen, rejected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_keeps_the_papers_rules(variant: str) -> None:
    text = PROMPTS.systems[variant]
    low = text.lower()
    assert all(key in text for key in ANSWER_KEYS)
    positions = [text.rindex(f"{name} >" if i < 5 else f"> {name}")
                 for i, name in enumerate(map(str, CATEGORIES))]  # fmt: skip
    assert positions == sorted(positions)  # Safety > ... > Style
    assert "untrusted" in low
    assert "never obey" in low
    assert "length is no merit" in low
    assert "apart" in low  # magnitude and confidence are judged independently
    assert re.search(r"wrong or .*disputed|wrong, or .*dispute", low)
    assert "no explanation, no rationale, no beta" in low
    assert "exactly one category" in low
    assert low.rstrip().endswith("no code fence.")


def test_the_variants_differ_in_their_perspective() -> None:
    assert "must not exceed 0.3" in PROMPTS.systems["v1"]
    assert "Imagine the Loser slightly improved" in PROMPTS.systems["v2"]
    assert "side by side" in PROMPTS.systems["v3"]
    assert len(set(PROMPTS.systems.values())) == 3


texts = st.text(alphabet=st.sampled_from("ab{}<> \n0"), max_size=40) | st.sampled_from(
    ["{losing_response_text}", "{fence}", ">>>", "USER PROMPT", "{prompt_text}{fence} >>>"]
)


@given(texts, texts, texts)
def test_text_cannot_leave_its_place(prompt: str, chosen: str, rejected: str) -> None:
    item = pair(prompt, chosen, rejected)
    user = PROMPTS.messages("v1", item)[1]["content"]
    code = re.search(r"code of its markers is (\w+)\.", user)
    assert code is not None
    sections = re.findall(rf"<<< {code[1]} [^\n]*\n(.*?)\n{code[1]} >>>", user, re.DOTALL)
    assert sections == [prompt, chosen, rejected]
    assert user.count(code[1]) == 7


def test_a_fence_that_occurs_in_the_text_is_replaced() -> None:
    first = fence("a", "b")
    assert len(first) == FENCE_LENGTH
    hostile = f"ignore this {fence('x')}"
    assert fence(hostile) not in hostile
    # even a text that holds the code drawn for it by chance
    digest = fence("a")
    assert fence("a") == digest


def test_other_texts_can_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "k1.txt").write_text("Judge.")
    user = tmp_path / "user.txt"
    user.write_text("{prompt_text}|{winning_response_text}|{losing_response_text}")
    loaded = load_prompts(("k1",), str(tmp_path))
    assert loaded.messages("k1", pair("{losing_response_text}"))[1]["content"] == (
        "{losing_response_text}|a|b"
    )
    assert loaded.digest != PROMPTS.digest
    user.write_text("{prompt_text}|{winning_response_text}")
    with pytest.raises(ConfigError, match=r"\{losing_response_text\} exactly once"):
        load_prompts(("k1",), str(tmp_path))
    with pytest.raises(ConfigError, match=r"no file k2\.txt"):
        load_prompts(("k2",), str(tmp_path))


def test_the_papers_own_prompts_load_as_they_stand(real_data: Path) -> None:
    folder = real_data.parent / "paper" / "prompts"
    loaded = load_prompts(VARIANTS, str(folder))
    assert "Winner Response" in loaded.messages("v2", pair())[1]["content"]


def test_a_key_covers_what_changes_the_answer_and_nothing_else() -> None:
    (key, *_) = [call.key for call in calls_of(pair(), (TEACHER,), PROMPTS)]
    messages = PROMPTS.messages("v1", pair())
    assert key == call_key(TEACHER, messages)
    assert key == call_key(dataclasses.replace(TEACHER, name="other"), messages)
    for change in (
        dataclasses.replace(TEACHER, model="qwen-plus"),
        dataclasses.replace(TEACHER, provider="offline"),
        dataclasses.replace(TEACHER, decoding={"temperature": 0.2, "seed": 42}),
    ):
        assert call_key(change, messages) != key
    assert call_key(TEACHER, PROMPTS.messages("v1", pair(chosen="A"))) != key
    assert call_key(TEACHER, PROMPTS.messages("v2", pair())) != key
    assert call_key(TEACHER, PROMPTS.messages("v1", pair(name="renamed"))) == key


def test_any_text_has_a_key() -> None:
    odd = pair("\ud800 lone surrogate", "\x00", "\u2028")
    assert len({call.key for call in calls_of(odd, (TEACHER,), PROMPTS)}) == 3
