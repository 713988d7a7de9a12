"""Which call is asked before all others, and what a lost worker costs; no Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import WorkerCrashedError

from sp2dpo_ray.annotate import preflight as module
from sp2dpo_ray.annotate.journal import Entry
from sp2dpo_ray.annotate.preflight import preflight
from sp2dpo_ray.annotate.record import read_record
from sp2dpo_ray.annotate.spec import PanelSpec
from sp2dpo_ray.config import DecodingSection, TeacherSection
from sp2dpo_ray.core.annotation import Outcome
from sp2dpo_ray.core.calls import Call
from sp2dpo_ray.core.costs import Usage
from sp2dpo_ray.core.pairs import Pair
from sp2dpo_ray.core.place import Folder
from sp2dpo_ray.core.prompts import load_prompts
from sp2dpo_ray.errors import Stopped
from sp2dpo_ray.teachers.base import Reply
from tests.annotate.test_journal import attempt, ok, write

PAIRS = [Pair("p", [{"role": "user", "content": "x"}], "a", "b")]
OK = Reply(Outcome.OK, text="{}", usage=Usage(1, 1))


def spec_of(folder: Path, mode: str) -> PanelSpec:
    teacher = TeacherSection.model_validate(
        {"name": "t", "provider": "openai", "model": "m", "api_key_env": "TEST_KEY", "mode": mode}
    )
    prompts = load_prompts(("v1", "v2"))
    return PanelSpec((teacher,), DecodingSection(), prompts, Folder(folder), 1, 25, 10.0)


def open_job(calls: list[Call]) -> list[Entry]:
    job = {"kind": "job", "token": "k", "teacher": "t", "job": "batch_1", "calls": 1, "time": 0.0}
    return [*(attempt(call, None)[0] | {"job": "k"} for call in calls), job]


@pytest.mark.parametrize(
    ("mode", "waiting", "asked"),
    [("batch", 1, [1]), ("batch", 2, []), ("interactive", 1, [0])],
)
def test_a_call_whose_answer_is_on_its_way_is_not_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, waiting: int, asked: list[int]
) -> None:
    spec, seen = spec_of(tmp_path, mode), []

    def answer(_: PanelSpec, calls: dict[str, Call], coordinator: Any) -> dict[str, Reply]:
        seen.extend(call.key for call in calls.values())
        return dict.fromkeys(calls, OK)

    monkeypatch.setattr(module, "_asked", answer)
    calls = spec.calls(PAIRS)
    preflight(spec, PAIRS, read_record(open_job(calls[:waiting])), None)
    assert seen == [calls[number].key for number in asked]


def test_a_lost_worker_s_answer_is_not_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, seen = spec_of(tmp_path, "interactive"), []

    def lost(_: PanelSpec, calls: dict[str, Call], coordinator: Any) -> dict[str, Reply]:
        (call,) = calls.values()
        seen.append(call.key)
        write(spec.place, *attempt(call, ok()))
        if len(seen) == 1:
            raise WorkerCrashedError
        return {"t": OK}

    monkeypatch.setattr(module, "_asked", lost)
    assert preflight(spec, PAIRS, read_record([]), None) == {"t": OK}
    assert seen == [call.key for call in spec.calls(PAIRS)]


def test_workers_that_are_lost_again_and_again_stop_the_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: Any) -> dict[str, Reply]:
        raise WorkerCrashedError

    monkeypatch.setattr(module, "_asked", lost)
    with pytest.raises(Stopped, match="worker was lost 3 times"):
        preflight(spec_of(tmp_path, "interactive"), PAIRS, read_record([]), None)
