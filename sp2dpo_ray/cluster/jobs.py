"""Commands as jobs of a cluster: handed in, followed, stopped, found again.

In: a configuration, a stage, Ray's job client. Out: how the job ended. Invariant: what a job is
told is its command line and a working directory without secrets; keys and tokens are the nodes'
own, since everybody who may read jobs may read what came with them.
"""

from __future__ import annotations

import asyncio
import secrets
import shlex
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sp2dpo_ray.cluster.package import EXCLUDED, artifacts_of, check_places
from sp2dpo_ray.config import Config
from sp2dpo_ray.core.hashing import sha256_hex
from sp2dpo_ray.errors import ConfigError, DataError, Sp2dpoError, Stopped, TrainingError

KEY = "sp2dpo"  # of a job's metadata: what it does
ENDED = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})
LOST = "JOB_SUPERVISOR_ACTOR"  # of Ray's error types: those of the process that holds the job
AGAIN_S = 2.0
PATIENCE_S = 120.0  # of failures alone, as when a head starts anew
QUIET_S = 30.0  # no word for so long may be a job that says nothing, or a connection that is dead
ERRORS = {error.exit_code: error for error in (ConfigError, DataError, Stopped, TrainingError)}


@dataclass(frozen=True, slots=True)
class Job:
    """A command on a cluster."""

    stage: str
    run: str
    folder: str
    command: str
    working_dir: Path
    metadata: dict[str, str]
    pip: str | None = None
    resources: dict[str, Any] = field(default_factory=dict)

    @property
    def runtime_env(self) -> dict[str, Any]:
        env: dict[str, Any] = {"working_dir": str(self.working_dir), "excludes": list(EXCLUDED)}
        return env | ({"pip": self.pip} if self.pip else {})


def job_of(
    config: Config,
    file: Path,
    stage: str,
    overrides: Sequence[str],
    *,
    working_dir: Path,
    pip: Path | None = None,
    more: Sequence[str] = (),
    cpus: float = 0,
    gpus: float = 0,
) -> Job:
    """The job that does on a cluster what `sp2dpo STAGE FILE` does here.

    pip: a requirements file, installed for the job where the nodes' image lacks the packages.
    cpus, gpus: of the command itself; with none it runs on the head, which has the least to lose.
    Raises ConfigError for what would only work on one machine.
    """
    check_places(config)
    try:
        inside = file.resolve().relative_to(working_dir.resolve())
    except ValueError:
        raise ConfigError(
            f"{file} must lie in the working directory {working_dir}, which goes to the cluster"
        ) from None
    command = ["python", "-m", "sp2dpo_ray", stage, inside.as_posix(), *more]
    for override in overrides:
        command += ["--set", override]
    return Job(
        stage,
        config.run.name,
        artifacts_of(config),
        shlex.join(command),
        working_dir,
        {
            KEY: sha256_hex([stage, list(more), config.resolved]),
            "stage": stage,
            "run": config.run.name,
            "lambda_id": config.lambda_id,
        },
        None if pip is None else str(pip),
        {"entrypoint_num_cpus": cpus, "entrypoint_num_gpus": gpus},
    )


def submit_job(client: Any, job: Job) -> tuple[str, bool]:
    """The id of the job, and whether it is new: a running one that does the same is found again."""
    for known in client.list_jobs():
        same = (known.metadata or {}).get(KEY) == job.metadata[KEY]
        if same and str(known.status) not in ENDED and known.submission_id:
            return known.submission_id, False
    name = f"sp2dpo-{job.stage}-{job.run}-{secrets.token_hex(3)}"
    made = client.submit_job(
        entrypoint=job.command,
        submission_id=name,
        runtime_env=job.runtime_env,
        metadata=dict(job.metadata),
        **job.resources,
    )
    return str(made), True


def follow(client: Any, name: str) -> dict[str, Any]:
    """Write the job's log to stderr until it ends; how it ended.

    Lines already written are left out when the connection breaks and comes back. Raises the error
    that the job's exit code stands for.
    """
    last = asyncio.run(_follow(client, name))
    info = _patiently(lambda: client.get_job_info(name), name)
    status, code = str(info.status), info.driver_exit_code
    if status == "STOPPED":
        raise Stopped(f"job {name} was stopped; the same command goes on with what is finished")
    if status == "FAILED" and code is None and LOST in str(info.error_type):
        why = (info.message or status).strip().splitlines()[0]
        raise Stopped(f"job {name}: {why}; the same command goes on with what is finished")
    if status != "SUCCEEDED":
        error = ERRORS.get(code or 0, Sp2dpoError)
        why = f"exit code {code}" if code else (info.message or status).strip().splitlines()[0]
        raise error(f"job {name} ended with {why}; its last words are above")
    return {"job": name, "status": status, "last": last}


async def _follow(client: Any, name: str) -> str:
    """Returns the last line of the log."""
    import aiohttp  # comes with Ray's job client

    shown, tail, ended = 0, "", False
    failing: float | None = None  # since when nothing but failures
    while True:
        seen, whole = 0, False
        try:
            log = client.tail_job_logs(name)
            try:
                while True:
                    async with asyncio.timeout(QUIET_S):
                        text = await anext(log)
                    failing = None
                    new = text[max(0, shown - seen) :]
                    seen += len(text)
                    shown = max(shown, seen)
                    sys.stderr.write(new)
                    sys.stderr.flush()
                    tail = (tail + new)[-100_000:]
            except StopAsyncIteration:
                whole = True
            except TimeoutError:
                pass  # the status tells whether anybody is there
            async with asyncio.timeout(QUIET_S):
                asked = _asked(lambda: client.get_job_status(name))
                status = str(await asyncio.wrap_future(asked))
            failing = None
            if status in ENDED and (whole or ended):
                return next((line for line in reversed(tail.splitlines()) if line.strip()), "")
            ended = status in ENDED  # after silence the end of the log is read once more
        except (RuntimeError, OSError, aiohttp.ClientError):
            failing = time.monotonic() if failing is None else failing
            if time.monotonic() - failing > PATIENCE_S:
                raise _silent(name) from None
        await asyncio.sleep(AGAIN_S)


def stop(client: Any, name: str) -> bool:
    """Ask the job to end, as Ctrl-C would; whether it was running."""
    return bool(client.stop_job(name))


def list_jobs(client: Any) -> list[dict[str, Any]]:
    """Jobs of ours, the newest first."""
    ours = [job for job in client.list_jobs() if KEY in (job.metadata or {})]
    return [
        {
            "job": job.submission_id,
            "stage": job.metadata["stage"],
            "run": job.metadata["run"],
            "lambda_id": job.metadata["lambda_id"],
            "status": str(job.status),
            "exit_code": job.driver_exit_code,
            "started": job.start_time,
            "ended": job.end_time,
        }
        for job in sorted(ours, key=lambda job: job.start_time or 0, reverse=True)
    ]


def _patiently(ask: Callable[[], Any], name: str) -> Any:
    since = time.monotonic()
    while True:
        try:
            return _asked(ask).result(QUIET_S)
        except (RuntimeError, OSError):
            if time.monotonic() - since > PATIENCE_S:
                raise _silent(name) from None
            time.sleep(AGAIN_S)


def _asked(ask: Callable[[], Any]) -> Future[Any]:
    """What Ray's client will have answered. Its requests wait for ever on a connection that is
    dead, so they are made where nobody has to wait for them."""
    answer: Future[Any] = Future()
    answer.set_running_or_notify_cancel()

    def work() -> None:
        try:
            answer.set_result(ask())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return answer


def _silent(name: str) -> Stopped:
    return Stopped(
        f"the cluster has not answered for {PATIENCE_S:.0f} seconds; job {name} may go on. If its "
        "head is lost, hand the same command in again: what is finished is kept"
    )
