"""Calls that wait together: each is answered once, nothing is computed that nobody waits for."""

from __future__ import annotations

import asyncio
import threading

import pytest

from sp2dpo_ray.core.annotation import Outcome
from sp2dpo_ray.core.calls import Call, TeacherIdentity, calls_of
from sp2dpo_ray.core.pairs import Pair
from sp2dpo_ray.core.prompts import load_prompts
from sp2dpo_ray.teachers.base import Reply
from sp2dpo_ray.teachers.micro_batching import MicroBatcher

PROMPTS = load_prompts(("v1",))


def calls(count: int) -> list[Call]:
    teacher = TeacherIdentity("t", "offline", "rules", {})
    pairs = (Pair(f"p{i}", [{"role": "user", "content": f"{i}?"}], "a", "b") for i in range(count))
    return [call for pair in pairs for call in calls_of(pair, (teacher,), PROMPTS)]


def test_who_stopped_waiting_is_not_worked_for() -> None:
    done: list[list[str]] = []
    begun, go_on = threading.Event(), threading.Event()

    def work(batch: list[Call]) -> list[Reply]:
        done.append([call.pair.prompt_id for call in batch])
        begun.set()
        assert go_on.wait(10)
        return [Reply(Outcome.OK, text=call.pair.prompt_id) for call in batch]

    async def ask() -> list[Reply | BaseException]:
        batcher = MicroBatcher(work, 2)
        asked = [asyncio.create_task(batcher.ask(call)) for call in calls(6)]
        await asyncio.to_thread(begun.wait, 10)  # the first two are worked on
        asked[2].cancel()
        late = asyncio.create_task(asyncio.wait_for(batcher.ask(calls(7)[6]), 0.01))
        with pytest.raises(TimeoutError):
            await late
        go_on.set()
        return await asyncio.gather(*asked, return_exceptions=True)

    found = asyncio.run(ask())
    assert done == [["p0", "p1"], ["p3", "p4"], ["p5"]]
    assert isinstance(found[2], asyncio.CancelledError)
    assert [row.text for row in found if isinstance(row, Reply)] == ["p0", "p1", "p3", "p4", "p5"]


def test_it_goes_on_after_everybody_left() -> None:
    async def ask() -> Reply:
        batcher = MicroBatcher(lambda batch: [Reply(Outcome.OK) for _ in batch], 4)
        first, second = calls(2)
        left = asyncio.create_task(batcher.ask(first))
        await asyncio.sleep(0)  # it waits in the queue
        left.cancel()
        await asyncio.sleep(0.01)
        return await asyncio.wait_for(batcher.ask(second), 5)

    assert asyncio.run(ask()).outcome is Outcome.OK
