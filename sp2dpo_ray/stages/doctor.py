"""Stage `doctor`: what this machine has, what it lacks, and whether each teacher answers.

In: the configuration and the machine. Out: figures, no secrets; nothing is written. Invariant: each
API teacher is asked once, about a pair of our own, so the user's data goes nowhere.
"""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
from typing import Any

from sp2dpo_ray.annotate.preflight import judge
from sp2dpo_ray.config import Config, TeacherSection
from sp2dpo_ray.console import say
from sp2dpo_ray.core.annotation import Outcome, read_answer
from sp2dpo_ray.core.calls import calls_of
from sp2dpo_ray.core.pairs import Pair
from sp2dpo_ray.core.prompts import load_prompts
from sp2dpo_ray.core.sources import find_source
from sp2dpo_ray.core.versions import RECORDED, version_of
from sp2dpo_ray.errors import DataError, Sp2dpoError
from sp2dpo_ray.run import Run, Summary
from sp2dpo_ray.teachers.base import Reply, identity
from sp2dpo_ray.teachers.catalogue import make_teacher, settings_of

PROBE = Pair(
    "probe",
    [{"role": "user", "content": "What is the capital of Australia?"}],
    "Canberra is the capital of Australia.",
    "Sydney is the capital of Australia.",
)


def doctor(run: Run) -> Summary:
    """Look at packages, machine, storage, data and teachers; say what to mend."""
    config = run.config
    problems = _missing_data(config)
    summary: Summary = {
        "python": platform.python_version(),
        "packages": {name: version_of(name) for name in RECORDED},
        "cores": os.cpu_count(),
        "gpus": _gpus(),
        "disk_free_gb": round(shutil.disk_usage(_existing(run)).free / 1e9, 1),
        "ray_address": config.cluster.address or os.environ.get("RAY_ADDRESS"),
        "teachers": {t.name: _examine(t, config, problems) for t in config.teachers},
        "problems": problems,
    }
    missing = [name for name, version in summary["packages"].items() if version is None]
    if missing:
        say(f"doctor: not installed here: {', '.join(missing)}")
    for name, found in summary["teachers"].items():
        say(f"doctor: teacher {name}: {found['state']}")
    wanted = config.train.least_workers * config.train.gpus_per_worker
    if config.cluster.address is None and wanted > summary["gpus"]:
        say(
            f"doctor: training asks for {wanted:g} GPUs, this machine has {summary['gpus']}; on a "
            "cluster: sp2dpo submit"
        )
    return summary


def _missing_data(config: Config) -> list[str]:
    problems = []
    for source in filter(None, (config.data.source, config.data.eval_source)):
        try:
            find_source(source)
        except DataError as error:
            problems.append(str(error))
    return problems


def _examine(teacher: TeacherSection, config: Config, problems: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {"provider": teacher.provider, "model": teacher.model}
    try:
        found["settings_dropped"] = settings_of(teacher, config.decoding).dropped
        if teacher.on_engine:
            return found | {"state": "runs on this cluster; annotate looks for vLLM and the GPUs"}
        made = make_teacher(teacher, config.decoding)
        reply = asyncio.run(_ask(made, teacher, config))
        judge(teacher, reply, config.decoding.max_output_tokens)
    except Sp2dpoError as error:
        problems.append(str(error))
        return found | {"state": "cannot be asked"}
    found |= {"outcome": str(reply.outcome), "served_model": reply.served_model}
    if reply.outcome is not Outcome.OK:
        problems.append(f"teacher {teacher.name}: {reply.outcome}: {reply.detail}")
        return found | {"state": f"answers with {reply.outcome}"}
    if detail := read_answer(reply.text or "").detail:
        problems.append(f"teacher {teacher.name}: its answer is not valid: {detail}")
        return found | {"state": "answers, not validly"}
    return found | {"state": "answers"}


async def _ask(made: Any, teacher: TeacherSection, config: Config) -> Reply:
    prompts = load_prompts(config.prompts.variants, config.prompts.dir)
    call = next(calls_of(PROBE, (identity(teacher, config.decoding),), prompts))
    try:
        async with asyncio.timeout(config.decoding.timeout_s):
            reply: Reply = await made.ask(call)
            return reply
    except TimeoutError:
        detail = f"no answer within {config.decoding.timeout_s:g} s"
        return Reply(Outcome.TRANSPORT, detail=detail)
    finally:
        await made.close()


def _gpus() -> int:
    # asked of the driver's folder: importing torch for this takes seconds, and may not be there
    folder = "/proc/driver/nvidia/gpus"
    return len(os.listdir(folder)) if os.path.isdir(folder) else 0


def _existing(run: Run) -> str:
    folder = run.folder
    while not folder.exists():
        folder = folder.parent
    return str(folder)
