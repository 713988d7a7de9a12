"""Stage `student`: find the student, or make the tiny one.

In: `student`, and the training pairs for the tiny one. Out: `student/`, whose manifest says exactly
which student it is. Invariant: a student that cannot be found is refused here, before any teacher
is paid.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from sp2dpo_ray.console import bar
from sp2dpo_ray.core.artifact import Draft, open_artifact
from sp2dpo_ray.core.files import TRAIN
from sp2dpo_ray.core.pairs import pairs_from
from sp2dpo_ray.errors import ArtifactError
from sp2dpo_ray.modeling.student import StudentRef, find_student, has_changed
from sp2dpo_ray.modeling.tiny import make_tiny_student
from sp2dpo_ray.run import Run, Summary

TINY = "tiny"
MODEL = "model"


def student(run: Run) -> Summary:
    """Find the student, or make the tiny one; its manifest says exactly which it is."""
    chosen = run.config.student
    tiny = chosen.model == TINY
    if tiny:
        settings: Any = {"tiny": chosen.tiny.model_dump(mode="json")}
    else:
        found = find_student(chosen.model, chosen.revision)
        settings = {"model": found.model, "revision": found.revision, "is": found.fingerprint}
    provenance = run.provenance("student", settings, {"prepare": run.path("pairs")} if tiny else {})

    def make(draft: Draft) -> None:
        start = time.perf_counter()
        identity: Summary
        if tiny:
            pairs = pairs_from(pq.read_table(run.pairs_file(TRAIN)))
            with bar("student: teaching", chosen.tiny.steps) as advance:
                loss = make_tiny_student(pairs, chosen.tiny, draft.path / MODEL, advance)
            made = find_student(str(draft.path / MODEL), None)
            identity = {"model": TINY, "revision": None, "fingerprint": made.fingerprint}
            draft.summary["loss"] = loss
        else:
            identity = asdict(found)
        # a file, not only a summary: the artifact's digest must change when the student does
        (draft.path / "student.json").write_text(json.dumps(identity, indent=2) + "\n")
        draft.summary |= identity | {"seconds": time.perf_counter() - start}

    return run.publish_once(run.path("student"), provenance, make)


def student_ref(run: Run) -> StudentRef:
    """The student of this run, from its checked artifact."""
    made = open_artifact(run.path("student")).summary
    tiny = made["model"] == TINY
    model = str(run.path("student", MODEL)) if tiny else made["model"]
    if not tiny and has_changed(Path(model), made["fingerprint"]):
        raise ArtifactError(
            f"{model} is not the student that was found there before: its files have changed; run: "
            "sp2dpo student, then what follows it"
        )
    return StudentRef(model, made["revision"], made["fingerprint"])
