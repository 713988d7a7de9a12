"""A model in this process, held to the schema: valid answers whatever its weights, own draws."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from sp2dpo_ray.config import DecodingSection, TeacherSection, load_config
from sp2dpo_ray.core.annotation import ANSWER_SCHEMA, Outcome, read_answer
from sp2dpo_ray.core.calls import calls_of
from sp2dpo_ray.core.pairs import Pair
from sp2dpo_ray.core.prompts import load_prompts
from sp2dpo_ray.core.taxonomy import CATEGORIES
from sp2dpo_ray.errors import ConfigError
from sp2dpo_ray.run import Run
from sp2dpo_ray.stages import STAGES
from sp2dpo_ray.teachers.base import Reply, identity
from sp2dpo_ray.teachers.catalogue import make_teacher, settings_of

LONGEST = json.dumps(
    dict(zip(ANSWER_SCHEMA["properties"], (max(CATEGORIES, key=len), 0.123456, 0.123456),
             strict=True))
)  # fmt: skip
ROOM = len(LONGEST) + 1  # a token is a byte at least, and the end is one more


def section(student: Any, rows: int = 8, **options: Any) -> TeacherSection:
    return TeacherSection(
        name="own", provider="transformers", model=student.model, options=options,
        engine={"rows": rows},
    )  # fmt: skip


def replies(
    teacher: TeacherSection, decoding: DecodingSection, count: int = 12, words: int = 4
) -> list[Reply]:
    pairs = [
        Pair(f"p{i}", [{"role": "user", "content": f"question {i} " + "why " * (i % words)}],
             "yes " * (1 + i % 5), "no")
        for i in range(count)
    ]  # fmt: skip
    prompts = load_prompts(("v2",), None)
    calls = [c for pair in pairs for c in calls_of(pair, (identity(teacher, decoding),), prompts)]

    async def ask() -> list[Reply]:
        made = make_teacher(teacher, decoding)
        try:
            return list(await asyncio.gather(*(made.ask(call) for call in calls)))
        finally:
            await made.close()

    return asyncio.run(ask())


@pytest.mark.parametrize("temperature", [0.0, 1.0, 5.0])
def test_an_untaught_model_gives_valid_answers(tiny_student: Any, temperature: float) -> None:
    decoding = DecodingSection(temperature=temperature, top_p=1.0, max_output_tokens=ROOM)
    found = replies(section(tiny_student, rows=4), decoding)
    assert {reply.outcome for reply in found} == {Outcome.OK}
    readings = [read_answer(reply.text or "") for reply in found]
    assert not [reading.detail for reading in readings if reading.annotation is None]
    assert all(r.usage and 0 < r.usage.completion_tokens <= ROOM for r in found)
    if temperature == 5.0:
        assert len({reply.text for reply in found}) > 8


def test_a_calls_answer_is_its_own_whatever_is_answered_beside_it(tiny_student: Any) -> None:
    decoding = DecodingSection(temperature=1.0, max_output_tokens=ROOM)
    texts = [
        [reply.text for reply in replies(section(tiny_student, rows=rows), decoding)]
        for rows in (1, 5, 12)
    ]
    assert texts[0] == texts[1] == texts[2]
    other = replies(section(tiny_student), decoding.model_copy(update={"seed": 7}))
    assert [reply.text for reply in other] != texts[0]


def test_what_does_not_fit_is_told_and_the_others_are_answered(tiny_student: Any) -> None:
    cut = replies(section(tiny_student), DecodingSection(max_output_tokens=5), count=2)
    assert {reply.outcome for reply in cut} == {Outcome.TRUNCATED}
    assert cut[0].detail == "no end within 5 tokens"
    decoding = DecodingSection(max_output_tokens=ROOM)
    found = replies(section(tiny_student, rows=8), decoding, count=4, words=2)
    long = replies(section(tiny_student, rows=8), decoding, count=4, words=1)
    assert {reply.outcome for reply in (*found, *long)} == {Outcome.OK}
    huge = Pair("huge", [{"role": "user", "content": "why " * 60_000}], "a", "b")
    teacher = make_teacher(section(tiny_student), decoding)
    prompts = load_prompts(("v2",), None)
    (call,) = calls_of(huge, (identity(section(tiny_student), decoding),), prompts)
    reply = asyncio.run(teacher.ask(call))
    assert reply.outcome is Outcome.TRUNCATED
    assert "fit" in reply.detail


def test_settings_that_it_has_no_word_for_are_told(tiny_student: Any) -> None:
    dropped = settings_of(section(tiny_student), DecodingSection(top_k=3, stop=("x",))).dropped
    assert sorted(dropped) == ["stop", "top_k"]


def test_models_and_options_that_are_none_are_refused(tmp_path: Path, tiny_student: Any) -> None:
    with pytest.raises(ConfigError, match=r"options\.precision.* a transformers teacher takes"):
        make_teacher(section(tiny_student, precision="int4"), DecodingSection())
    nowhere = TeacherSection(name="own", provider="transformers", model=str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="teachers: own: "):
        make_teacher(nowhere, DecodingSection())


@pytest.mark.ray
def test_it_annotates_through_the_whole_pipeline(
    ray_cluster: None, demo_config: Path, tiny_student: Any
) -> None:
    teachers = f"teachers=[{{name: own, provider: transformers, model: {tiny_student.model}}}]"
    run = Run(load_config(str(demo_config), (
        teachers, "data.limit=12", "prompts.variants=[v1, v2]", "annotate.actors=1",
        f"decoding={{max_output_tokens: {ROOM}, temperature: 1}}")))  # fmt: skip
    told = {name: STAGES[name](run) for name in ("prepare", "annotate", "schedule")}
    assert told["annotate"]["outcomes"] == {"ok": 2 * 12}
    calls = pq.read_table(run.path("annotations", "annotations.parquet"))
    assert set(calls["served_model"].to_pylist()) == {tiny_student.model}
    assert told["schedule"]["excluded"] == 0
