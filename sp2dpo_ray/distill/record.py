"""What a published predictor says of itself, and whether a panel may hold it.

In: a folder, a configuration. Out: its record, remarks on the panel. Invariant: no model is loaded,
so no library of the predictor's is needed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sp2dpo_ray.config import Config, TeacherSection
from sp2dpo_ray.core.artifact import Manifest, open_artifact
from sp2dpo_ray.core.prompts import load_prompts
from sp2dpo_ray.errors import ArtifactError, ConfigError

RECORD = "predictor.json"


def folder_of(teacher: TeacherSection) -> Path:
    """Where a teacher's predictor lies."""
    return Path(teacher.model).expanduser().resolve()


def read_predictor(folder: Path) -> tuple[Manifest, dict[str, Any]]:
    """Manifest and record; ArtifactError for what is missing, altered or no predictor."""
    manifest = open_artifact(folder)
    if manifest.stage != "distill":
        raise ArtifactError(f"{folder}: holds what {manifest.stage} made, no predictor")
    record: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    return manifest, record


def check_predictors(config: Config) -> list[str]:
    """What to know of a panel's predictors, a line each; ConfigError where one would read other
    texts than those that it learned from."""
    lines = []
    for teacher in config.teachers:
        if not teacher.is_predictor:
            continue
        _, record = read_predictor(folder_of(teacher))
        if record["redact"] != config.annotate.redact:
            raise ConfigError(
                f"teachers: {teacher.name}: its predictor learned with annotate.redact: "
                f"{str(record['redact']).lower()}, and this run has "
                f"{str(config.annotate.redact).lower()}; give both the same"
            )
        learned = {(provider, model) for _, provider, model, *_ in record["teachers"]}
        twice = [
            other.name for other in config.teachers if (other.provider, other.model) in learned
        ]
        if twice:
            lines.append(
                f"teachers: {teacher.name} repeats what it learned from {twice}, which this panel "
                "has too: their answers count twice"
            )
        if not _same_prompts(config, record):
            lines.append(
                f"teachers: {teacher.name} learned from answers to other prompts than this run's; "
                "it says what teachers said to those"
            )
    return lines


def _same_prompts(config: Config, record: dict[str, Any]) -> bool:
    """Whether the texts of this run are those of the predictor's variants."""
    try:
        ours = load_prompts(tuple(record["variants"]), config.prompts.dir)
    except ConfigError:  # there is no such variant
        return False
    return ours.digest == record["prompts"]
