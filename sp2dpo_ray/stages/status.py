"""Command `status`: how far a run is, from what lies in its folder alone.

In: a run folder. Out: artifacts, calls and money by teacher, trainings, and when anything last
moved; nothing is written, no Ray is needed. Invariant: a run that is at work is not disturbed.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from sp2dpo_ray.annotate.journal import Journal
from sp2dpo_ray.annotate.record import read_record
from sp2dpo_ray.config.section import uri_below
from sp2dpo_ray.config.sections import RunSection
from sp2dpo_ray.core.artifact import (
    MANIFEST,
    Manifest,
    OtherVersion,
    manifests_in,
    read_manifest,
)
from sp2dpo_ray.core.files import METRICS_LINES
from sp2dpo_ray.core.place import find_place
from sp2dpo_ray.errors import ArtifactError
from sp2dpo_ray.run import Summary

FINISHED, OUTDATED, OTHER = "finished", "inputs have changed", "another release's"
TRIES = 5  # at a folder that changes while it is walked


def status(folder: Path) -> Summary:
    """How far the run in a folder is. Raises ArtifactError where the folder holds no run."""
    file = folder / "lambda.json"
    if not file.is_file():
        raise ArtifactError(f"{folder}: no run folder (no lambda.json in it)")
    process = json.loads(file.read_text(encoding="utf-8"))
    artifacts = artifacts_of(folder)
    moved = max(_times(folder), default=file.stat().st_mtime)
    return {
        "run": process["config"]["run"]["name"],
        "folder": str(folder),
        "lambda_id": process["lambda_id"],
        "at_work": _locked(folder),
        "idle_seconds": round(max(0.0, time.time() - moved), 1),
        "artifacts": artifacts,
        "annotation": _annotation(folder, process["config"]),
        "training": _training(folder),
    }


def artifacts_of(folder: Path) -> list[dict[str, Any]]:
    """Every published artifact: where, of which stage, whether its inputs are those that lie here,
    when it was made, and its size on disk in bytes."""
    found = _manifests(folder)
    there: dict[str, set[str]] = {}
    for manifest in found.values():
        if manifest is not None:
            there.setdefault(manifest.stage, set()).add(manifest.digest)
    rows = []
    for name, manifest in found.items():
        with suppress(FileNotFoundError):  # replaced this moment
            rows.append(
                {
                    "artifact": name,
                    "stage": manifest.stage if manifest else None,
                    "state": _state(manifest, there),
                    "made": (folder / name / MANIFEST).stat().st_mtime,
                    "bytes": bytes_in(folder / name),
                }
            )
    return rows


def bytes_in(folder: Path) -> int:
    """Size of all files below a folder; what goes while it is looked at counts nothing."""
    total = 0
    for at, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.stat(os.path.join(at, name)).st_size
    return total


def _manifests(folder: Path) -> dict[str, Manifest | None]:
    for _ in range(TRIES):
        with suppress(FileNotFoundError):  # a draft went while the folder was walked
            return manifests_in(folder)
    return manifests_in(folder)


def _state(manifest: Manifest | None, there: dict[str, set[str]]) -> str:
    if manifest is None:
        return OTHER
    for name, digest in manifest.inputs.items():
        stage = name.partition(" ")[0]
        if digest not in there.get(stage, {digest}):
            return OUTDATED
    return FINISHED


def _times(folder: Path) -> list[float]:
    """When the files that grow while a stage works last did."""
    patterns = (f"*/{MANIFEST}", f"*/*/{MANIFEST}", "journal/**/*.jsonl",
                f"train/*/{METRICS_LINES}", "reference/.*-parts/*")  # fmt: skip
    times = []
    for pattern in patterns:
        with suppress(FileNotFoundError):  # a folder went while it was walked
            for path in folder.glob(pattern):
                with suppress(FileNotFoundError):
                    times.append(path.stat().st_mtime)
    return times


def _locked(folder: Path) -> bool:
    """Whether a command holds the folder."""
    try:
        with (folder / ".lock").open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _annotation(folder: Path, config: dict[str, Any]) -> Summary:
    """Calls and money on record, of a journal that other runs may share."""
    run = RunSection.model_validate(config["run"])
    own = str(folder / "journal") if run.uri is None else uri_below(run.uri, "journal")
    where = config["annotate"]["journal"] or own
    record = read_record(Journal(find_place(where)).new_entries())
    try:
        pairs = read_manifest(folder / "pairs")
    except OtherVersion:
        pairs = None
    wanted = None
    if pairs is not None:
        count = pairs.summary["pairs"]
        count += pairs.summary["eval_pairs"] if config["annotate"]["evaluation"] else 0
        wanted = count * len(config["prompts"]["variants"])
    return {
        "calls_of_each_teacher": wanted,
        "calls_settled": len(record.keys),
        "unanswered": record.unanswered,
        "batch_jobs_open": len(record.jobs),
        "teachers": {
            name: {
                "calls": spent.settled,
                "usd": spent.usd,
                "possibly_usd": spent.possibly_usd,
                "seconds": spent.seconds / spent.answers if spent.answers else None,
            }
            for name, spent in sorted(record.spent.items())
        },
    }


def _training(folder: Path) -> list[dict[str, Any]]:
    """The last line of each arm's metrics."""
    rows = []
    for path in sorted(folder.glob(f"train/*/{METRICS_LINES}")):
        lines = path.read_text(encoding="utf-8").splitlines()
        whole = [line for line in lines if line.endswith("}")]  # the last may be under way
        if not whole:
            continue
        last = json.loads(whole[-1])
        rows.append(
            {
                "arm": path.parent.name,
                "step": last["step"],
                "steps": last["steps"],
                "loss": last["loss"],
                "tokens_per_second": last["tokens"] / last["seconds"] if last["seconds"] else None,
                "finished": (path.parent / MANIFEST).is_file(),
            }
        )
    return rows
