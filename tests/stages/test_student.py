"""The student's stage: which student it was, and whether it still is."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from sp2dpo_ray.config import load_config
from sp2dpo_ray.errors import ArtifactError
from sp2dpo_ray.run import Run
from sp2dpo_ray.stages.student import student, student_ref


def test_a_folder_whose_files_have_changed_is_another_student(
    demo_config: Path, tiny_student: Any, tmp_path: Path
) -> None:
    """Its reference would be the old one's: a training must not begin with it."""
    folder = tmp_path / "sft"
    shutil.copytree(tiny_student.model, folder)
    run = Run(load_config(str(demo_config), (f"student.model={folder}",)))
    made = student(run)
    assert student_ref(run).fingerprint == made["fingerprint"]
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"its files have changed; run: sp2dpo student"):
        student_ref(run)
    assert student(run)["reused"] is False
    assert student_ref(run).fingerprint != made["fingerprint"]
