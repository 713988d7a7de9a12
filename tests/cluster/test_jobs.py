"""Jobs without a cluster: what goes along, what a broken connection costs, how an end is told."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest

from sp2dpo_ray import console
from sp2dpo_ray.cli.jobs import _show_jobs
from sp2dpo_ray.cluster import door, jobs
from sp2dpo_ray.cluster.jobs import follow, job_of, list_jobs, submit_job
from sp2dpo_ray.cluster.package import EXCLUDED
from sp2dpo_ray.config import load_config
from sp2dpo_ray.errors import (
    ConfigError,
    DataError,
    Sp2dpoError,
    Stopped,
    TrainingError,
)


@dataclass
class Client:
    """Ray's job client: `streams` are what each connection to the log sends before it breaks (an
    error), is silent (a number of seconds) or ends; the job has ended when they are used up."""

    streams: list[list[Any]] = field(default_factory=list)
    status: str = "SUCCEEDED"
    code: int | None = 0
    error_type: str | None = None
    message: str | None = "it broke"
    jobs: list[Any] = field(default_factory=list)
    handed: list[dict[str, Any]] = field(default_factory=list)

    async def tail_job_logs(self, name: str) -> AsyncIterator[str]:
        for piece in self.streams.pop(0) if self.streams else [OSError("no head")]:
            if isinstance(piece, Exception):
                raise piece
            if isinstance(piece, float):
                await asyncio.sleep(piece)
            else:
                yield piece

    def get_job_status(self, name: str) -> str:
        return "RUNNING" if self.streams else self.status

    def get_job_info(self, name: str) -> Any:
        return SimpleNamespace(status=self.status, driver_exit_code=self.code,
                               message=self.message, error_type=self.error_type)  # fmt: skip

    def list_jobs(self) -> list[Any]:
        return self.jobs

    def submit_job(self, **given: Any) -> str:
        self.handed.append(given)
        return str(given["submission_id"])


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "AGAIN_S", 0.01)
    monkeypatch.setattr(jobs, "PATIENCE_S", 1.0)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "QUIET_S", 0.5)


def test_a_log_is_written_once_however_often_the_connection_breaks(
    capsys: pytest.CaptureFixture[str],
) -> None:
    client = Client(
        streams=[
            ["one\n", "two\n", OSError("reset")],
            ["one\ntwo\nth", RuntimeError("WebSocket connection closed unexpectedly")],
            [aiohttp.ServerDisconnectedError()],
            ["one\n", "two\nthree\n", '{"pairs": 3}\n', "\n"],
        ]
    )
    told = follow(client, "j")
    assert capsys.readouterr().err == 'one\ntwo\nthree\n{"pairs": 3}\n\n'
    assert told == {"job": "j", "status": "SUCCEEDED", "last": '{"pairs": 3}'}


def test_a_cluster_that_is_gone_is_told_and_how_to_go_on() -> None:
    with pytest.raises(Stopped, match=r"has not answered for 1 seconds; job j may go on"):
        follow(Client(streams=[["one\n", OSError("reset")]], status="RUNNING"), "j")


def test_a_quiet_job_does_not_use_up_the_patience() -> None:
    quiet = 1.2  # longer than the patience, and then one connection is dropped
    told = follow(Client(streams=[["one\n", quiet, OSError("reset")], ["one\n", "two\n"]]), "j")
    assert told["last"] == "two"


def test_a_connection_that_is_dead_is_left(hasty: None, capsys: pytest.CaptureFixture[str]) -> None:
    dead = 1e6
    client = Client(streams=[["one\n", dead], [dead], ["one\ntwo\n", dead], ["one\ntwo\nthree\n"]])
    assert follow(client, "j")["last"] == "three"
    assert capsys.readouterr().err == "one\ntwo\nthree\n"

    class Ended(Client):
        """Its status is told, its log cannot be had any more."""

        async def tail_job_logs(self, name: str) -> AsyncIterator[str]:
            yield "one\n"
            await asyncio.sleep(dead)

    assert follow(Ended(), "j")["last"] == "one"


def test_requests_that_nobody_answers_are_not_waited_for(hasty: None) -> None:
    class Deaf(Client):
        def get_job_status(self, name: str) -> str:
            time.sleep(30)
            return "RUNNING"

    began = time.monotonic()
    with pytest.raises(Stopped, match="has not answered"):
        follow(Deaf(streams=[["one\n"]] * 9), "j")
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("why", ["ACTOR_DIED", "ACTOR_UNKNOWN_FAILURE", "ACTOR_START_TIMEOUT"])
def test_a_job_whose_own_process_was_lost_goes_on_with_the_same_command(why: str) -> None:
    from ray.dashboard.modules.job.common import JobErrorType

    lost = JobErrorType(f"JOB_SUPERVISOR_{why}").value
    client = Client(streams=[["a line\n"]], status="FAILED", code=None, error_type=lost)
    with pytest.raises(Stopped, match="it broke; the same command goes on"):
        follow(client, "j")


@pytest.mark.parametrize(
    ("status", "code", "error", "words"),
    [
        ("FAILED", 2, ConfigError, "exit code 2"),
        ("FAILED", 3, DataError, "exit code 3"),
        ("FAILED", 4, Stopped, "exit code 4"),
        ("FAILED", 5, TrainingError, "exit code 5"),
        ("FAILED", 1, Sp2dpoError, "exit code 1"),
        ("FAILED", None, Sp2dpoError, "ended with it broke"),
        ("STOPPED", None, Stopped, "was stopped; the same command goes on"),
    ],
)
def test_a_job_ends_as_its_stage_did(
    status: str, code: int | None, error: type[Sp2dpoError], words: str
) -> None:
    with pytest.raises(error, match=words) as raised:
        follow(Client(streams=[["a line\n"]], status=status, code=code), "j")
    assert type(raised.value) is error


def test_what_goes_along(demo_config: Path, tmp_path: Path) -> None:
    config = load_config(str(demo_config), ("train.epochs=2", 'train.arm="dpo:0.1"'))
    job = job_of(config, demo_config, "train", ("train.epochs=2", 'train.arm="dpo:0.1"'),
                 working_dir=tmp_path, more=("--json",))  # fmt: skip
    assert job.command == (
        "python -m sp2dpo_ray train config.yaml --json --set train.epochs=2 "
        "--set 'train.arm=\"dpo:0.1\"'"
    )
    assert set(job.runtime_env) == {"working_dir", "excludes"}  # no variables: anybody reads them
    assert job.runtime_env["excludes"] == list(EXCLUDED)
    client = Client()
    name, new = submit_job(client, job)
    assert new
    assert name.startswith("sp2dpo-train-test-")
    (given,) = client.handed
    assert given["metadata"]["lambda_id"] == config.lambda_id
    assert given["entrypoint_num_cpus"] == 0

    running = SimpleNamespace(metadata=dict(job.metadata), status="RUNNING", submission_id="old",
                              driver_exit_code=None, start_time=2, end_time=None)  # fmt: skip
    ended = SimpleNamespace(**{**vars(running), "status": "FAILED", "submission_id": "older",
                               "start_time": 1})  # fmt: skip
    strange = SimpleNamespace(metadata=None, status="RUNNING", submission_id=None, start_time=None)
    assert submit_job(Client(jobs=[strange, ended, running]), job) == ("old", False)
    assert submit_job(Client(jobs=[strange, ended]), job)[1] is True
    listed = list_jobs(Client(jobs=[ended, strange, running]))
    assert [row["job"] for row in listed] == ["old", "older"]
    other = job_of(config, demo_config, "reference", (), working_dir=tmp_path)
    assert submit_job(Client(jobs=[running]), other)[1] is True


def test_jobs_are_lines_of_json_where_lines_are_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "AS_JSON", True)
    row = {"job": "sp2dpo-train", "stage": "train", "run": "r", "status": "FAILED", "exit_code": 3}
    _show_jobs({"jobs": [row, row]})
    lines = capsys.readouterr().err.splitlines()
    assert [json.loads(json.loads(line)["message"]) for line in lines] == [row, row]


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("10.0.0.1:8265", "http://10.0.0.1:8265"),
        ("https://ray.example.com/", "https://ray.example.com"),
        (None, "http://127.0.0.1:8265"),
    ],
)
def test_addresses(given: str | None, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    assert door.address_of(given) == url
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://head:1")
    assert door.address_of(None) == "http://head:1"
    with pytest.raises(ConfigError, match="is not the address of a dashboard"):
        door.address_of("ray://10.0.0.1:10001")


def test_doors_that_are_none_or_open(monkeypatch: pytest.MonkeyPatch) -> None:
    import requests

    def answers(status: int, text: str) -> None:
        answer = requests.Response()
        answer.status_code, answer._content = status, text.encode()
        monkeypatch.setattr(requests, "get", lambda *_, **__: answer)

    with pytest.raises(Stopped, match=r"no Ray dashboard answers at http://127\.0\.0\.1:9 "):
        door.connect("127.0.0.1:9", allow_open=False)
    answers(200, "[]")
    with pytest.raises(ConfigError, match="runs the code of anybody who reaches it"):
        door.connect("127.0.0.1:9", allow_open=False)
    answers(200, "<html>nginx</html>")
    with pytest.raises(ConfigError, match="is no Ray dashboard: it answered 200"):
        door.connect("127.0.0.1:9", allow_open=False)
    answers(404, "")
    with pytest.raises(ConfigError, match="is no Ray dashboard: it answered 404"):
        door.connect("127.0.0.1:9", allow_open=True)
