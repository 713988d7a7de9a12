"""The offline rules: valid, repeatable, and able to tell the demo's gaps apart."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sp2dpo_ray.config import DecodingSection, TeacherSection
from sp2dpo_ray.core.annotation import read_answer
from sp2dpo_ray.core.calls import calls_of
from sp2dpo_ray.core.hashing import sha256_hex
from sp2dpo_ray.core.pairs import Pair
from sp2dpo_ray.core.prompts import load_prompts
from sp2dpo_ray.errors import ConfigError
from sp2dpo_ray.teachers.base import identity
from sp2dpo_ray.teachers.catalogue import make_teacher

DECODING = DecodingSection(timeout_s=1.0, retries=3, retry_base_s=0.01)
PROMPTS = load_prompts(("v1", "v2", "v3"))


def section(**changes: Any) -> TeacherSection:
    values = {"name": "t", "provider": "offline", "model": "rules"} | changes
    return TeacherSection.model_validate(values)


@pytest.mark.parametrize("persona", ["balanced", "strict", "generous"])
def test_offline_answers_are_valid_and_repeatable(
    persona: str, demo_rows: list[dict[str, Any]]
) -> None:
    teacher = section(options={"persona": persona})
    who = (identity(teacher, DECODING),)
    pairs = [
        Pair(row["prompt_id"], [{"role": "user", "content": row["prompt"]}], row["chosen"],
             row["rejected"])
        for row in demo_rows[:30]
    ]  # fmt: skip

    async def all_answers() -> list[str]:
        rules = make_teacher(teacher, DECODING)
        calls = [call for pair in pairs for call in calls_of(pair, who, PROMPTS)]
        return [(await rules.ask(call)).text or "" for call in calls]

    answers = asyncio.run(all_answers())
    assert all(read_answer(answer).annotation for answer in answers)
    assert asyncio.run(all_answers()) == answers
    assert len(set(answers)) > 20


def test_offline_rules_see_the_gaps_of_the_demo(demo_rows: list[dict[str, Any]]) -> None:
    """Safety above style, and a right label above a flipped one: averages over the demo pairs."""
    teacher = section(options={"persona": "balanced"})
    who = (identity(teacher, DECODING),)

    async def gaps() -> list[tuple[str, bool, float]]:
        rules = make_teacher(teacher, DECODING)
        found = []
        for row in demo_rows:
            pair = Pair(row["prompt_id"], [{"role": "user", "content": row["prompt"]}],
                        row["chosen"], row["rejected"])  # fmt: skip
            for call in calls_of(pair, who, PROMPTS):
                annotation = read_answer((await rules.ask(call)).text or "").annotation
                assert annotation is not None
                gap = annotation.magnitude * annotation.confidence
                found.append((row["known_category"], row["label_flipped"], gap))
        return found

    rows = asyncio.run(gaps())

    def mean(keep: Callable[[str, bool], bool]) -> float:
        values = [gap for category, flipped, gap in rows if keep(category, flipped)]
        return sum(values) / len(values)

    assert mean(lambda c, _: c == "Safety") > 2 * mean(lambda c, _: c == "Style")
    hard = {"Safety", "Factuality", "Instruction"}
    right = mean(lambda c, flipped: c in hard and not flipped)
    assert right > 1.5 * mean(lambda c, flipped: c in hard and flipped)


@pytest.mark.parametrize(
    "changes",
    [
        {"options": {"persona": "wise"}},
        {"options": {"temperature": 1}},
        {"provider": "scripted", "options": {"sript": "x"}},
    ],
)
def test_options_that_a_teacher_does_not_know_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="option"):
        make_teacher(section(**changes), DECODING)


def test_a_script_is_known_by_what_it_says(tmp_path: Path) -> None:
    """An edited answer is another answer: without that the journal would go on with the old one."""
    decoding = DecodingSection()

    def key(path: Path) -> str:
        section = TeacherSection(
            name="people", provider="scripted", model="m", options={"script": str(path)}
        )
        return sha256_hex(identity(section, decoding).decoding)

    one, moved, other = (tmp_path / name for name in ("one", "moved", "other"))
    one.write_text("answers")
    moved.write_text("answers")
    other.write_text("others")
    assert key(one) == key(moved) != key(other)
    one.write_text("another answer")
    assert key(one) != key(moved)
    with pytest.raises(ConfigError, match=r"people: options\.script: no file"):
        key(tmp_path / "gone")
