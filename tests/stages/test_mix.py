"""Mixed annotation and distillation where no Ray is needed: keys, money, refusals, what is fair."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from sp2dpo_ray.annotate.answers import Answers
from sp2dpo_ray.annotate.client import intent_entry, result_entry
from sp2dpo_ray.annotate.journal import Journal, Segment
from sp2dpo_ray.annotate.record import read_record
from sp2dpo_ray.annotate.table import pair_chunks, write_annotations
from sp2dpo_ray.config import load_config
from sp2dpo_ray.core.annotation import Outcome
from sp2dpo_ray.core.artifact import publish, read_manifest
from sp2dpo_ray.distill.choice import at_random
from sp2dpo_ray.errors import ConfigError, Stopped
from sp2dpo_ray.run import Run
from sp2dpo_ray.stages import distill as distill_stage
from sp2dpo_ray.stages import mix as mix_stage
from sp2dpo_ray.stages.distill import _map_of_frontier, distill
from sp2dpo_ray.stages.mix import mixed
from sp2dpo_ray.stages.mix_rounds import keep_rounds, to_be_asked
from sp2dpo_ray.stages.panel import PanelWork, panel_of
from sp2dpo_ray.stages.plan import plan
from sp2dpo_ray.stages.prepare import prepare
from sp2dpo_ray.teachers.base import Reply
from tests.conftest import DEMO_PAIRS

BASE = (
    f"data.source={DEMO_PAIRS}", "data.limit=264", "data.eval_fraction=0",
    "annotate.evaluation=false", "distill={least_pairs: 40, rounds: 10}",
    "prompts.variants=[v1]", "annotate.mix={share: 0.6, rounds: 2}",
)  # fmt: skip
Make = Callable[..., Run]


@pytest.fixture
def prepared(demo_config: Path) -> Make:
    def make(*overrides: str) -> Run:
        run = Run(load_config(str(demo_config), (*BASE, *overrides)))
        run.write_lambda()
        prepare(run)
        return run

    return make


def ids_of(run: Run) -> list[str]:
    names: list[str] = pq.read_table(run.pairs_file("train"))["prompt_id"].to_pylist()
    return names


class Panel:
    """Answers with random numbers what is not on record: at most so many pairs, then it stops."""

    def __init__(self, most: int | None = None, then: Exception | None = None) -> None:
        self._draw, self._most, self._then = np.random.default_rng(0), most, then

    def __call__(self, panel: PanelWork) -> None:
        record = read_record(Journal(panel.spec.place).new_entries())
        segments = {t.name: Segment(panel.spec.place, t.name) for t in panel.spec.teachers}
        pairs = [pair for file in panel.files.values() for part in pair_chunks(file)
                 for pair in part]  # fmt: skip
        for pair in pairs:
            calls = panel.spec.calls([pair])
            if not calls or all(record.settled([call.key for call in calls])):
                continue
            if self._most == 0:
                break
            self._most = None if self._most is None else self._most - 1
            for call in calls:
                answer = {
                    "semantic_gap_category": "Style",
                    "semantic_gap_magnitude": float(self._draw.random()),
                    "semantic_gap_confidence": float(self._draw.random()),
                }
                intent = intent_entry(call, 1, 0.0)
                reply = Reply(Outcome.OK, text=json.dumps(answer))
                for entry in (intent, result_entry(intent, reply, seconds=1.0, money={})):
                    asyncio.run(segments[call.teacher].append(entry))
        for segment in segments.values():
            segment.close()
        if self._most == 0 and self._then is not None:
            raise self._then


def test_other_answers_teach_another_predictor(prepared: Make) -> None:
    """A teacher that was asked again says more; the rounds are the same, the predictor is not."""
    run = prepared("annotate.mix={share: 0.6, rounds: 1}")
    found = []
    for most in (100, None, None):
        mixed(run, panel_of(run), Panel(most))
        manifest = read_manifest(run.path("mix"))
        assert manifest is not None
        record = json.loads(run.path("mix", "predictor.json").read_text())
        found.append((manifest.key, sum(record["pairs"].values())))
    assert found[0][1] == 100 < found[1][1] == round(0.6 * len(ids_of(run)))
    assert found[1] == found[2]  # the same answers are learned once


def test_where_the_money_ends_the_share_that_it_sufficed_for_is_told(prepared: Make) -> None:
    run = prepared("budget.usd=1")
    ids = ids_of(run)
    first = round(0.4 * round(0.6 * len(ids)))
    empty = Stopped("budget.usd has no room for another call.")
    with pytest.raises(Stopped, match=r"annotate.mix: 9 of the .* pairs .* are answered$"):
        mixed(run, panel_of(run), Panel(9, empty))
    with pytest.raises(Stopped, match=rf"sufficed for {first}: --set annotate.mix.share=") as told:
        mixed(run, panel_of(run), Panel(first + 3, empty))
    assert f"{first + 12} of the" in str(told.value)
    flags = re.findall(r"--set (\S+)", str(told.value))
    smaller = prepared("budget.usd=1", *flags)
    mixed(smaller, panel_of(smaller), Panel(0))
    record = json.loads(smaller.path("mix", "predictor.json").read_text())
    assert sum(record["pairs"].values()) == first  # no call was missing


def test_a_predictor_that_learned_nothing_says_so(
    prepared: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(mix_stage, "say", said.append)
    run = prepared("annotate.mix={share: 0.9, rounds: 1}", "distill.calibrate=0.25")
    mixed(run, panel_of(run), Panel())
    assert any("error is that of a constant" in line for line in said)
    assert "learned nothing" in run.path("mix", "card.md").read_text()


def test_from_a_predictor_nothing_is_learned(prepared: Make) -> None:
    run = prepared("teachers.0={name: alba, provider: predictor, model: /somewhere}")
    with pytest.raises(ConfigError, match=r"teachers: \['alba'\] are predictors, and nothing is"):
        mixed(run, None, Panel())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"nothing is learned from what a predictor says"):
        distill(run)


def test_plan_counts_the_rounds_that_are_on_disk(prepared: Make) -> None:
    run = prepared()
    panel, ids = panel_of(run), ids_of(run)
    whole = round(0.6 * len(ids))
    at_first = {ids[row] for row in at_random(ids, whole, 0)}
    assert to_be_asked(run, panel, ids) == at_first
    rounds = [[name for name in ids if name not in at_first][:40], sorted(at_first)[:20]]
    keep_rounds(run, panel, ids, rounds)
    asked = to_be_asked(run, panel, ids)
    assert set(rounds[0]) | set(rounds[1]) < asked
    assert len(asked) == whole
    Panel()(panel.only({name for part in rounds for name in part}, ids))
    told = plan(run)
    calls = len(run.config.teachers)
    assert (told["calls"], told["calls_recorded"]) == (whole * calls, 60 * calls)


def test_the_frontier_is_told_under_the_runs_own_map(prepared: Make) -> None:
    power = ("mapping.shape=power", "mapping.exponent=2")
    own, words = _map_of_frontier(prepared(*power).config)
    assert (own.shape, words) == ("power", "Betas are those of this run's map (power).")
    other, words = _map_of_frontier(prepared("mapping.shape=quantile").config)
    assert other.shape == "linear"
    assert "its own reads more than the gap" in words


def test_only_the_first_round_calibrates_and_tests_what_distill_learns(
    prepared: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = prepared("annotate.mix={share: 0.8, rounds: 2, first: 0.5}")
    shared = mixed(run, panel_of(run), Panel())
    provenance = run.provenance("annotate", {}, {"prepare": run.path("pairs")})
    with publish(run.path("annotations"), provenance) as draft:
        answers = Answers(Journal(shared.panel.spec.place).new_entries())
        write_annotations(
            draft.path / "annotations.parquet", shared.panel.files, shared.panel.expected,
            answers, shared.predict,
        )  # fmt: skip
        answers.close()
    distill(run)
    first = set(json.loads(run.path("mix", "rounds.json").read_text())[0])
    tested = pq.read_table(run.path("predictor", "held_out.parquet"))["prompt_id"].to_pylist()
    assert tested
    assert set(tested) <= first
    record = json.loads(run.path("predictor", "predictor.json").read_text())
    assert "lambda_id" not in record
    key = read_manifest(run.path("predictor"))
    monkeypatch.setattr(distill_stage, "VERSION", 99)
    distill(run)
    assert read_manifest(run.path("predictor")) != key
