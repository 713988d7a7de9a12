"""The stage `report`: only what belongs together is shown, and what is missing is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sp2dpo_ray.config import load_config
from sp2dpo_ray.core.arms import parse_arm
from sp2dpo_ray.core.artifact import publish
from sp2dpo_ray.core.files import BETAS, EVAL_PAIRS, METRICS_LINES
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


def trained(run: Run, margins: dict[str, list[float]]) -> None:
    """Arms as `train` leaves them, with these margins of their held-out pairs."""
    inputs = {name: run.path(folder) for name, folder in (("prepare", "pairs"),
                                                          ("schedule", "schedule"))}  # fmt: skip
    for name, margin in margins.items():
        arm = parse_arm(name)
        provenance = run.provenance("train", run.config.training(arm), inputs)
        run.path("train").mkdir(exist_ok=True)
        with publish(run.path("train", arm.folder), provenance) as draft:
            ids = [f"p{place}" for place in range(len(margin))]
            held_out = pa.table({"prompt_id": pa.array(ids, pa.string()),
                                 "margin": pa.array(margin, pa.float64())})  # fmt: skip
            pq.write_table(held_out, draft.path / EVAL_PAIRS)
            pq.write_table(pa.table({"beta": [0.1, 0.2]}), draft.path / BETAS)
            step = {"step": 1, "loss": 0.6, "logratio/margins": 0.1}
            (draft.path / METRICS_LINES).write_text(json.dumps(step) + "\n")
            draft.summary |= {"title": name, "seconds": 1.0, "tokens_per_second": 2.0,
                              "loss": 0.6, "eval": {}}  # fmt: skip


@pytest.mark.parametrize("count", [0, 1, 19, 20, 60])
def test_few_held_out_pairs_have_a_page_and_no_verdict(
    annotated: Make, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the pairs are made up: each has a prompt of its own
    monkeypatch.setattr("sp2dpo_ray.stages.report.prompts_of", lambda file, ids: ids)
    run = annotated("sweep.arms=['dpo:0.3', 'dpo:0.1', jmamp]")
    schedule(run)
    lost, won = [-1.0] * count, [1.0] * count
    trained(run, {"dpo:0.3": lost, "dpo:0.1": lost, "jmamp": won})
    summary = report(run)
    page = Path(summary["page"]).read_text(encoding="utf-8")
    assert 'id="curve-loss"' in page
    rows = {row["arm"]: row for row in summary["arms"]}
    if not count:
        assert not rows
        assert "trained, not scored: no held-out pairs" in page
        return
    assert summary["arms"][0]["arm"] == "dpo:0.3"
    assert rows["jmamp"]["pairs"] == (count if count < 20 else count // 2)
    assert rows["jmamp"]["verdict"] == ("better" if count == 60 else "too few pairs")
    assert ("too few for a verdict" in page) == (count < 60)
