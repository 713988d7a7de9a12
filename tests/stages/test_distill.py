"""Distillation through the stages: annotate a part, learn, predict the rest, schedule, train."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from sp2dpo_ray.config import load_config
from sp2dpo_ray.core.schedule.verify import verify
from sp2dpo_ray.errors import ArtifactError, ConfigError, DataError
from sp2dpo_ray.run import Run
from sp2dpo_ray.stages import STAGES
from tests.conftest import DEMO_PAIRS
from tests.processes import kill_when

pytestmark = pytest.mark.ray
DISTILL = "distill={least_pairs: 40, rounds: 30}"
MIX = "annotate.mix={share: 0.6, rounds: 3}"


def run_of(demo_config: Path, *overrides: str, offline: bool = False) -> Run:
    whole = (f"data.source={DEMO_PAIRS}", "data.limit=264", "data.eval_fraction=0.2", DISTILL)
    return Run(load_config(str(demo_config), (*whole, *overrides)), offline)


def stages(run: Run, *names: str) -> dict[str, Any]:
    return {name: STAGES[name](run) for name in names}


def test_teachers_annotate_a_part_and_the_predictor_the_rest(
    ray_cluster: None, demo_config: Path
) -> None:
    run = run_of(demo_config, MIX, "train.workers=1")
    run.write_lambda()
    told = stages(run, "prepare", "student", "annotate", "schedule")
    pairs, eval_pairs = told["prepare"]["pairs"], told["prepare"]["eval_pairs"]
    asked = round(0.6 * pairs)
    outcomes = told["annotate"]["outcomes"]
    panel = len(run.config.teachers) * 3
    assert outcomes == {"ok": (asked + eval_pairs) * panel, "predicted": (pairs - asked) * panel}
    assert told["annotate"]["calls_made"] == (asked + eval_pairs) * panel
    assert told["annotate"]["calls_reused"] == 0
    assert told["annotate"]["pairs_incomplete"] == 0

    calls = pq.read_table(run.path("annotations", "annotations.parquet"))
    said = calls.filter(pc.equal(calls["outcome"], "predicted"))
    assert set(said["served_model"].to_pylist()) == {
        f"predictor/{said['served_model'][0].as_py().removeprefix('predictor/')}"
    }
    assert said["text"].null_count == said.num_rows  # nobody wrote it
    assert all(text.startswith("gap within [") for text in said["detail"].to_pylist())
    beside = pq.read_table(run.path("schedule", "diagnostics.parquet"))
    assert sum(beside["predicted"].to_pylist()) == pairs - asked
    assert told["schedule"]["pairs"] == pairs
    quality = json.loads(run.path("schedule", "diagnostics.json").read_text())
    assert quality["predicted"] == pairs - asked
    card = run.path("schedule", "card.md").read_text()
    assert f"{pairs - asked:,} of {pairs:,} pairs were told by a predictor" in card
    assert any("follow from" in line for line in verify(run.folder))

    # beta of a predicted pair is the map of its one gap
    table = pq.read_table(run.path("schedule", "schedule.parquet"))
    marks = np.array(beside["predicted"].to_pylist())
    gap = table["effective_gap_alba_v1"].to_numpy()[marks]
    beta = table["beta_annotators_mean_ens"].to_numpy()[marks]
    np.testing.assert_allclose(beta, 0.03 + 0.27 * gap, atol=1e-12)
    assert beta.std() > 0

    trained = stages(run, "reference") and STAGES["train"](run, arm_name="jmamp")
    assert trained["pairs"] == pairs
    page = Path(STAGES["report"](run)["page"]).read_text()
    assert "a predictor answered instead of the" in page

    again = STAGES["annotate"](run)
    assert (again["reused"], again["calls_made"]) == (True, 0)
    # the table gone: the journal, the rounds and the predictor give the same bytes
    path = run.path("annotations")
    before = (path / "annotations.parquet").read_bytes()
    (path / "manifest.json").unlink()
    replayed = STAGES["annotate"](Run(run.config, offline=True))
    assert replayed["calls_made"] == 0
    assert (path / "annotations.parquet").read_bytes() == before


def test_rounds_choose_what_the_predictor_knows_least(ray_cluster: None, demo_config: Path) -> None:
    chosen = {}
    for choice in ("active", "random"):
        run = run_of(
            demo_config, f"annotate.mix={{share: 0.5, rounds: 2, choice: {choice}}}",
            f"run.name={choice}", "annotate.evaluation=false",
        )  # fmt: skip
        told = stages(run, "prepare", "annotate")
        rounds = json.loads(run.path("mix", "rounds.json").read_text())
        pairs = told["prepare"]["pairs"]
        whole = round(0.5 * pairs)
        assert [len(part) for part in rounds] == [round(0.4 * whole), whole - round(0.4 * whole)]
        assert len({name for part in rounds for name in part}) == whole
        chosen[choice] = rounds
        assert STAGES["plan"](run)["calls"] == whole * len(run.config.teachers) * 3
    assert chosen["active"][0] == chosen["random"][0]
    assert chosen["active"][1] != chosen["random"][1]


@pytest.mark.slow
def test_a_killed_mix_goes_on_with_the_pairs_that_it_chose(
    ray_cluster: None, demo_config: Path, tmp_path: Path
) -> None:
    slow = "teachers.0.options={persona: balanced}"
    flags = (MIX, slow, "annotate.evaluation=false")
    run = run_of(demo_config, *flags)
    STAGES["prepare"](run)
    whole = (f"data.source={DEMO_PAIRS}", "data.limit=264", "data.eval_fraction=0.2", DISTILL)
    command = ["annotate", str(demo_config)]
    for flag in (*whole, *flags):
        command += ["--set", flag]
    state = run.path(".mix")

    def second_round() -> bool:
        return any(len(json.loads(path.read_text())) >= 2 for path in state.glob("*.json"))

    kill_when(second_round, command, within_s=120)
    (path,) = state.glob("*.json")
    before = json.loads(path.read_text())
    summary = STAGES["annotate"](run)
    assert json.loads(path.read_text())[: len(before)] == before
    assert summary["outcomes"].keys() == {"ok", "predicted"}
    fresh = run_of(demo_config, *flags, "run.name=fresh")
    stages(fresh, "prepare", "annotate")
    name = "annotations.parquet"
    assert (
        run.path("annotations", name).read_bytes() == fresh.path("annotations", name).read_bytes()
    )


def test_a_predictor_is_a_teacher_like_any_other(ray_cluster: None, demo_config: Path) -> None:
    first = run_of(demo_config, "distill.frontier=[0.6]")
    told = stages(first, "prepare", "annotate", "distill")["distill"]
    assert "| all | no |" in first.path("predictor", "frontier.md").read_text()
    assert told["pairs"] == first_pairs(first)
    assert 0 < told["coverage"] <= 1
    assert told["spearman"] > 0.3
    assert STAGES["distill"](first)["reused"]
    folder = first.path("predictor")
    assert "# Predictor of semantic gaps" in (folder / "card.md").read_text()

    teachers = f"teachers=[{{name: distilled, provider: predictor, model: {folder}}}]"
    run = run_of(demo_config, teachers, "run.name=second", "prompts.variants=[v1]")
    summary = stages(run, "prepare", "annotate", "schedule")
    assert summary["annotate"]["outcomes"] == {"ok": first_pairs(first) + eval_pairs(first)}
    assert summary["annotate"]["cost_usd"] == 0
    calls = pq.read_table(run.path("annotations", "annotations.parquet"))
    (served,) = set(calls["served_model"].to_pylist())
    assert served.startswith("predictor/")
    assert "distilled: a predictor" in run.path("schedule", "card.md").read_text()
    # pairs in another language than it has seen are told
    path = demo_config.parent / "foreign.jsonl"
    rows = [{"prompt": f"Wie viele Beine hat Ameise {i}?", "chosen": "Sechs Beine hat jedes Insekt",
             "rejected": "Keine Ahnung, frag jemand anderen"} for i in range(3)]  # fmt: skip
    path.write_text("\n".join(json.dumps(row) for row in rows))
    odd = run_of(demo_config, teachers, "run.name=odd", "prompts.variants=[v1]",
                 f"data.source={path}", "data.eval_fraction=0")  # fmt: skip
    assert STAGES["prepare"](odd)["languages"] == {"de": 3}
    assert STAGES["annotate"](odd)["unfamiliar"] == 3
    # another predictor is another model: nothing is taken from the journal
    other = run_of(demo_config, "distill.seed=1")
    STAGES["distill"](other)
    again = STAGES["annotate"](run)
    assert again["calls_made"] == first_pairs(first) + eval_pairs(first)


def first_pairs(run: Run) -> int:
    return int(pq.read_metadata(run.pairs_file("train")).num_rows)


def eval_pairs(run: Run) -> int:
    return int(pq.read_metadata(run.pairs_file("eval")).num_rows)


def test_what_cannot_be_distilled_says_why(ray_cluster: None, demo_config: Path) -> None:
    thrifty = run_of(
        demo_config, "annotate.early_stop=0.27", "distill.frontier=[0.5]", "run.name=thrifty"
    )
    stages(thrifty, "prepare", "annotate")
    with pytest.raises(DataError, match=r"distill\.frontier needs pairs whose every call"):
        STAGES["distill"](thrifty)
    few = run_of(demo_config, "data.limit=30")
    stages(few, "prepare", "annotate")
    with pytest.raises(DataError, match=r"pairs have a whole set of annotations, .* asks for 40"):
        STAGES["distill"](few)
    mix = run_of(demo_config, "annotate.mix={share: 0.1, rounds: 2}", "run.name=mix")
    STAGES["prepare"](mix)
    with pytest.raises(DataError, match=r"its first round would ask about .* raise annotate.mix"):
        STAGES["annotate"](mix)
    teachers = "teachers=[{name: gone, provider: predictor, model: /nowhere}]"
    gone = run_of(demo_config, teachers, "run.name=gone")
    STAGES["prepare"](gone)
    with pytest.raises((ArtifactError, ConfigError), match=r"/nowhere.*sp2dpo distill"):
        STAGES["annotate"](gone)
