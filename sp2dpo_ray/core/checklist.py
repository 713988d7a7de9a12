"""The reproducibility checklist of the paper's appendix J.4, held against a run folder.

In: a run folder. Out: each line of the list with where the run holds it, or what is missing.
Invariant: a line counts as held only if the file that holds it was opened and has it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sp2dpo_ray.core.artifact import MANIFEST, read_manifest
from sp2dpo_ray.core.files import CARD, EXCLUDED, QUALITY, SCHEDULE
from sp2dpo_ray.errors import ArtifactError

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Line:
    """One demand of the list; where: what holds it, or None with what is missing."""

    group: str
    demand: str
    where: str | None
    missing: str = ""


@dataclass(frozen=True, slots=True)
class _Folder:
    path: Path
    process: Json

    def manifest(self, name: str | Path) -> Json:
        """The manifest of an artifact as plain values; empty where there is none."""
        found = read_manifest(self.path / name)
        return {"summary": found.summary, "settings": found.settings} if found else {}

    def figures(self) -> Json:
        path = self.path / "schedule" / QUALITY
        found: Json = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return found


def checklist(path: Path) -> list[Line]:
    """The list for a run folder; ArtifactError where the folder is none."""
    process = path / "lambda.json"
    if not process.is_file():
        raise ArtifactError(f"{path}: no run folder (no lambda.json in it)")
    folder = _Folder(path, json.loads(process.read_text(encoding="utf-8")))
    return [
        Line(group, demand, *_held(look(folder), lack)) for group, demand, look, lack in DEMANDS
    ]


def _held(where: str | None, lack: str) -> tuple[str | None, str]:
    return (where, "") if where else (None, lack)


def _data(folder: _Folder) -> str | None:
    settings = folder.manifest("pairs").get("settings") or {}
    data = folder.process["config"]["data"]
    if data.get("revision"):
        return f"lambda.json: data.source {data['source']}, data.revision {data['revision']}"
    digest = (settings.get("content") or {}).get(data["source"])
    return digest and f"pairs/{MANIFEST}: settings.content, SHA-256 {digest[:16]}... of the source"


def _preparation(folder: _Folder) -> str | None:
    pairs = folder.manifest("pairs")
    return (
        f"lambda.json: code_version {folder.process['code_version']}, config.data"
        if pairs
        else None
    )


def _counts(folder: _Folder) -> str | None:
    pairs, figures = folder.manifest("pairs"), folder.figures()
    if not (pairs and figures):
        return None
    return (
        f"pairs/{EXCLUDED} ({pairs['summary']['excluded']:,}), schedule/{EXCLUDED} "
        f"({figures['excluded']:,}); {figures['pairs']:,} pairs are left"
    )


def _journal(folder: _Folder) -> str | None:
    elsewhere = folder.process["config"]["annotate"]["journal"]
    if elsewhere:
        return f"lambda.json: annotate.journal {elsewhere}"
    files = list((folder.path / "journal").rglob("*.jsonl"))
    return f"journal/: {len(files)} files, every attempt with its raw answer" if files else None


def _outcomes(folder: _Folder) -> str | None:
    outcomes = folder.manifest("annotations").get("summary", {}).get("outcomes")
    return outcomes and f"annotations/{MANIFEST}: {outcomes}"


def _rules(folder: _Folder) -> str | None:
    prompts = folder.manifest("annotations").get("summary", {}).get("prompts")
    return prompts and (
        f"code_version {folder.process['code_version']}, core/annotation.py; prompts by SHA-256 "
        f"{prompts[:16]}... in annotations/{MANIFEST}"
    )


def _estimator(folder: _Folder) -> str | None:
    recipe = (folder.manifest("schedule").get("settings") or {}).get("recipe")
    return recipe and f"schedule/{MANIFEST}: settings.recipe; in words in schedule/{CARD}"


def _table(folder: _Folder) -> str | None:
    summary = folder.manifest("schedule").get("summary")
    return summary and f"schedule/{SCHEDULE}, SHA-256 {summary['sha256'][:16]}..."


def _spread(by: str) -> Callable[[_Folder], str | None]:
    def look(folder: _Folder) -> str | None:
        return f"schedule/{QUALITY}: {by}; schedule/{CARD}" if folder.figures().get(by) else None

    return look


def _judges(folder: _Folder) -> str | None:
    found = sorted(folder.path.glob(f"eval/*/*/scores/{MANIFEST}"))
    if not found or not all(folder.manifest(path.parent) for path in found):
        return None
    return f"{len(found)} of eval/<arm>/<benchmark>/scores/{MANIFEST}: settings"


DEMANDS: tuple[tuple[str, str, Callable[[_Folder], str | None], str], ...] = (
    ("Pinned inputs", "data set and its revision", _data,
     "a data set without revision or content hash; run: sp2dpo prepare"),
    ("Pinned inputs", "preprocessing", _preparation, "no pairs; run: sp2dpo prepare"),
    ("Pinned inputs", "final N and all exclusion counts", _counts,
     "no schedule; run: sp2dpo schedule"),
    ("Call-level logs", "raw outputs with failures and timeouts", _journal,
     "no journal; run: sp2dpo annotate"),
    ("Call-level logs", "what became of the calls", _outcomes,
     "no annotations; run: sp2dpo annotate"),
    ("Call-level logs", "post-processing and validation rules", _rules,
     "no annotations; run: sp2dpo annotate"),
    ("Aggregation", "the exact estimator, tie-breaking, damping", _estimator,
     "no schedule; run: sp2dpo schedule"),
    ("Control artifact", "the schedule of betas", _table, "no schedule; run: sp2dpo schedule"),
    ("Control artifact", "distribution by category", _spread("by_category"),
     "no schedule; run: sp2dpo schedule"),
    ("Control artifact", "distribution by disagreement", _spread("by_disagreement"),
     "no schedule; run: sp2dpo schedule"),
    ("Control artifact", "distribution by source of the pairs", lambda _: None,
     "the pairs carry no column that names their source"),
    ("Decoupling", "judges apart from teachers, and what may not overlap", _judges,
     "no judge in this run: it compares arms by held-out pairs alone"),
    ("Evaluation", "commits of the benchmarks, exact judge prompts", _judges,
     "no judged benchmark in this run"),
)  # fmt: skip
