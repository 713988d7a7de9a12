"""Work off the main thread: results, errors of every kind, and looks in between."""

from __future__ import annotations

import threading

import pytest

from sp2dpo_ray.core.threads import off_main_thread


def test_it_runs_elsewhere_and_gives_back_what_came_of_it() -> None:
    assert off_main_thread(lambda: threading.current_thread() is threading.main_thread()) is False


def test_whatever_is_raised_arrives() -> None:
    def stop() -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit, match="3"):
        off_main_thread(stop)


def test_it_looks_while_it_waits_and_once_after_the_end() -> None:
    done, seen = threading.Event(), list[bool]()

    def look() -> None:
        seen.append(done.is_set())
        if len(seen) == 3:
            release.set()

    release = threading.Event()

    def work() -> str:
        release.wait(10)
        done.set()
        return "made"

    assert off_main_thread(work, look, every_s=0.01) == "made"
    assert seen[:3] == [False] * 3
    assert seen[-1] is True
