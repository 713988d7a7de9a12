"""The stage `report`: only what belongs together is shown, and what is missing is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sp2dpo_ray.config import load_config
from sp2dpo_ray.errors import ArtifactError
from sp2dpo_ray.run import Run
from sp2dpo_ray.stages.prepare import prepare
from sp2dpo_ray.stages.report import report
from sp2dpo_ray.stages.schedule import schedule

Make = Callable[..., Run]


@pytest.mark.parametrize(
    ("override", "why"),
    [
        ("data.limit=10", "annotations/ was made from other pairs"),
        ("teachers.0.name=other", "other teachers, prompts, map or ensemble"),
        ("prompts.variants=[v1]", "other teachers, prompts, map or ensemble"),
        ("mapping.beta_max=0.2", "other teachers, prompts, map or ensemble"),
    ],
)
def test_a_schedule_of_other_pairs_or_another_configuration_is_refused(
    annotated: Make, demo_config: Path, override: str, why: str
) -> None:
    run = annotated()
    schedule(run)
    assert Path(report(run)["page"]).exists()
    changed = Run(load_config(str(demo_config), (override,)))
    prepare(changed)
    with pytest.raises(ArtifactError, match=why) as refused:
        report(changed)
    assert "run: sp2dpo annotate, then sp2dpo schedule" in str(refused.value)


def test_a_schedule_of_earlier_annotations_is_refused(annotated: Make) -> None:
    schedule(annotated())
    with pytest.raises(ArtifactError, match="made from other annotations"):
        report(annotated(seed=1))
