"""The light predictor: it learns, is calibrated, is the same twice, and refuses what is not its."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sp2dpo_ray.config import Config, DecodingSection
from sp2dpo_ray.config.distill import DistillSection
from sp2dpo_ray.core.artifact import Provenance, publish
from sp2dpo_ray.core.prompts import load_prompts
from sp2dpo_ray.core.taxonomy import CATEGORIES
from sp2dpo_ray.distill.card import card
from sp2dpo_ray.distill.conformal import covered, intervals, radius
from sp2dpo_ray.distill.features import features_of
from sp2dpo_ray.distill.figures import figures_of, skill
from sp2dpo_ray.distill.predictions import Raw, calibrated
from sp2dpo_ray.distill.predictor import Predictor, load_predictor, split_by, train
from sp2dpo_ray.distill.record import RECORD, check_predictors
from sp2dpo_ray.distill.targets import Targets
from sp2dpo_ray.distill.teacher import PredictorTeacher
from sp2dpo_ray.distill.texts import Texts
from sp2dpo_ray.errors import ArtifactError, ConfigError, DataError
from sp2dpo_ray.teachers.base import identity

SECTION = DistillSection()
ORIGIN = {
    "teachers": [["alba", "offline", "rules", {}]], "prompts": "0" * 64, "variants": ["v1"],
    "apart": "prompt", "redact": False, "categories": [str(CATEGORIES[0])],
}  # fmt: skip
GOOD, BAD = ["clear", "exact", "careful", "complete"], ["vague", "wrong", "lazy", "rude"]


def world(count: int = 600, seed: int = 0, *, learnable: bool = True) -> tuple[Texts, Targets]:
    """Pairs whose gap is in their words, with noise: more good words, a wider gap."""
    draw = np.random.default_rng(seed)
    good = draw.integers(0, 8, size=(count, 2))
    said = [
        [" ".join([*draw.choice(GOOD, n), *draw.choice(BAD, 8 - n), "thing"]) for n in row]
        for row in good
    ]
    chosen, rejected = zip(*said, strict=True)
    lead = (good[:, 0] - good[:, 1]) / 7
    if not learnable:
        lead = draw.permutation(lead)
    confidence = np.clip(0.5 + 0.5 * lead + draw.normal(scale=0.05, size=count), 0, 1)
    magnitude = np.clip(np.abs(lead) + draw.normal(scale=0.03, size=count), 0, 1)
    categories = np.zeros((count, 6))
    categories[np.arange(count), np.where(good[:, 0] > 4, 0, 5)] = 1
    ids = pa.array([f"p{i}" for i in range(count)])
    texts = Texts(
        pa.array([f"prompt {i}" for i in range(count)]), pa.array(chosen), pa.array(rejected)
    )
    return texts, Targets(
        ids, magnitude * confidence, confidence, magnitude * (1 - confidence), categories
    )


def trained(section: DistillSection = SECTION, **kind: Any) -> tuple[Predictor, dict[str, Any]]:
    texts, targets = world(**kind)
    split = split_by(texts.prompt.to_pylist(), section)
    predictor = train(texts, targets, split, section, ORIGIN)
    found = predictor.predict(texts.take(split.test))
    return predictor, figures_of(found, texts, targets, split, 0.27)


def published(predictor: Predictor, folder: Path, stage: str = "distill") -> Path:
    with publish(folder, Provenance(stage, "key", "lambda", {})) as draft:
        predictor.save(draft.path)
    return folder


def test_it_learns_what_is_in_the_words_and_beats_the_trivial_predictors() -> None:
    predictor, figures = trained()
    assert figures["spearman"] > 0.85
    assert figures["mae"] < 0.6 * min(figures["mae_constant"], figures["mae_length"])
    assert figures["category_accuracy"] > 0.85 > figures["category_accuracy_constant"]
    assert skill(figures) > 0.5
    text = card(predictor.record, figures)
    assert "never says so" in text
    assert "learned nothing" not in text


def test_where_nothing_can_be_learned_it_says_so_and_its_intervals_are_wide() -> None:
    _, well = trained()
    predictor, figures = trained(learnable=False)
    assert skill(figures) < 0.05
    assert figures["width"] > 2 * well["width"]
    assert "It learned nothing worth using" in card(predictor.record, figures)


def test_a_pair_turned_round_is_turned_round() -> None:
    texts, targets = world()
    predictor, _ = trained()
    turned = predictor.predict(Texts(texts.prompt, texts.rejected, texts.chosen))
    told = predictor.predict(texts)
    np.testing.assert_allclose(turned.confidence + told.confidence, 1, atol=0.35)
    assert np.corrcoef(turned.gap, targets.turned_gap)[0, 1] > 0.9


def test_the_same_pairs_give_the_same_files_and_a_saved_one_says_the_same(tmp_path: Path) -> None:
    one, two = trained()[0], trained()[0]
    for name, predictor in (("one", one), ("two", two)):
        published(predictor, tmp_path / name)
    files = sorted(
        path.name for path in (tmp_path / "one").iterdir() if path.name != "manifest.json"
    )
    for name in files:
        if name != "arrays.npz":  # a zip has dates
            assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    texts, _ = world(50, seed=3)
    loaded = load_predictor(tmp_path / "one")
    np.testing.assert_array_equal(loaded.predict(texts).gap, one.predict(texts).gap)
    np.testing.assert_array_equal(loaded.predict(texts).low, one.predict(texts).low)
    assert loaded.digest
    assert not any(path.suffix in {".pkl", ".joblib"} for path in (tmp_path / "one").iterdir())


def test_batches_of_any_size_say_the_same() -> None:
    predictor, _ = trained()
    texts, _ = world(30, seed=5)
    whole = predictor.predict(texts)
    single = [predictor.predict(texts.slice(i, 1)) for i in range(30)]
    np.testing.assert_allclose(whole.gap, [each.gap[0] for each in single], rtol=1e-6)


def test_bad_artifacts_and_too_few_pairs_are_refused(tmp_path: Path) -> None:
    predictor, _ = trained()
    folder = published(predictor, tmp_path / "old")
    with pytest.raises(ArtifactError, match="holds what schedule made, no predictor"):
        load_predictor(published(predictor, tmp_path / "other", "schedule"))
    old = Predictor(predictor.model, 0.0, predictor.record | {"version": 0})
    with pytest.raises(ArtifactError, match="version is 0, this code reads 1; run distill again"):
        load_predictor(published(old, tmp_path / "older"))
    (folder / RECORD).write_text(json.dumps(predictor.record | {"moved_by": 0.0}))
    with pytest.raises(ArtifactError, match=r"predictor\.json"):
        load_predictor(folder)
    texts, targets = world(60)
    with pytest.raises(DataError, match=r"60 pairs have a whole set .* asks for 100"):
        train(texts, targets, split_by(texts.prompt.to_pylist(), SECTION), SECTION, ORIGIN)


def test_one_category_alone_needs_no_trees() -> None:
    texts, targets = world()
    only = np.zeros_like(targets.categories)
    only[:, 4] = 1
    targets = Targets(targets.ids, targets.gap, targets.confidence, targets.turned_gap, only)
    split = split_by(texts.prompt.to_pylist(), SECTION)
    found = train(texts, targets, split, SECTION, ORIGIN).predict(texts)
    assert set(found.category.tolist()) == {4}


def test_no_prompt_is_on_two_sides() -> None:
    texts, _ = world()
    twice = Texts(*(pa.concat_arrays([column, column]) for column in
                    (texts.prompt, texts.chosen, texts.rejected)))  # fmt: skip
    split = split_by(twice.prompt.to_pylist(), SECTION)
    rows = (split.fit, split.calibrate, split.test)
    sides = [set((part % len(texts)).tolist()) for part in rows]
    assert sum(map(len, sides)) == len(texts)
    fair = np.arange(len(twice)) % 2 == 0
    only = split_by(twice.prompt.to_pylist(), SECTION, fair)
    assert fair[only.calibrate].all()
    assert fair[only.test].all()
    assert len(only.fit) + len(only.calibrate) + len(only.test) == len(twice)


def test_rows_that_were_not_drawn_do_not_bring_a_tested_prompt_into_training() -> None:
    """Of every prompt one row was drawn at random and one was chosen."""
    keys = [f"prompt {i}" for i in range(300)] * 2
    split = split_by(keys, SECTION, np.arange(600) < 300)
    sides = [{keys[row] for row in part} for part in (split.fit, split.calibrate, split.test)]
    assert not sides[0] & (sides[1] | sides[2])
    assert sum(map(len, sides)) == 300


def repeated(prompts: int, count: int = 120) -> tuple[Texts, Targets]:
    """Many pairs of few prompts."""
    texts, targets = world(count)
    few = pa.array([f"prompt {i % prompts}" for i in range(count)])
    return Texts(few, texts.chosen, texts.rejected), targets


@pytest.mark.parametrize("prompts", [5, 6, 9, 14])
def test_with_few_prompts_no_part_and_no_fold_is_empty(prompts: int) -> None:
    texts, targets = repeated(prompts)
    keys = texts.prompt.to_pylist()
    for seed in range(30):
        split = split_by(keys, DistillSection(seed=seed))
        assert split.is_whole
        sides = [split.calibrate, split.test, *(split.fit[split.folds == f] for f in range(3))]
        assert sum(len({keys[row] for row in side}) for side in sides) == split.keys == prompts
        assert sum(map(len, sides)) == len(keys)
    train(texts, targets, split_by(keys, SECTION), SECTION, ORIGIN)


@pytest.mark.parametrize("prompts", [1, 2, 4])
def test_too_few_prompts_are_refused_with_their_number(prompts: int) -> None:
    texts, targets = repeated(prompts)
    split = split_by(texts.prompt.to_pylist(), SECTION)
    with pytest.raises(DataError, match=rf"120 annotated pairs have {prompts} different prompts.*"):
        train(texts, targets, split, SECTION, ORIGIN)


def panel_with(folder: str, *more: dict[str, Any], redact: bool = False) -> Config:
    own = {"name": "own", "provider": "predictor", "model": folder}
    return Config.model_validate(
        {"data": {"source": "x"}, "teachers": [own, *more], "prompts": {"variants": ["v2"]},
         "annotate": {"redact": redact}}
    )  # fmt: skip


def test_a_panel_is_told_what_its_predictor_learned_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor, _ = trained()
    prompts = {"prompts": load_prompts(("v1",)).digest}
    same = Predictor(predictor.model, 0.0, predictor.record | prompts)
    published(same, tmp_path / "same")
    published(predictor, tmp_path / "other")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert check_predictors(panel_with("~/same")) == []
    alba = {"name": "alba", "provider": "offline", "model": "rules"}
    (line,) = check_predictors(panel_with("~/same", alba))
    assert "own repeats what it learned from ['alba']" in line
    (line,) = check_predictors(panel_with("~/other"))
    assert "own learned from answers to other prompts" in line
    with pytest.raises(ConfigError, match=r"annotate.redact: false, and this run has true"):
        check_predictors(panel_with("~/same", redact=True))
    (section,) = panel_with("~/same").teachers
    assert identity(section, DecodingSection()).model == load_predictor(tmp_path / "same").digest
    PredictorTeacher(section, DecodingSection())


def test_of_no_pair_it_says_nothing() -> None:
    predictor, _ = trained()
    texts, _ = world(3)
    found = predictor.predict(texts.slice(0, 0))
    assert (len(found), found.shares.shape, found.notes()) == (0, (0, 6), [])


@given(
    st.integers(0, 2**32), st.integers(12, 60), st.sampled_from([0.5, 0.8, 0.9]),
    st.floats(-0.4, 0.4),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_the_radius_is_the_least_that_covers_the_calibration(
    seed: int, count: int, coverage: float, bias: float
) -> None:
    draw = np.random.default_rng(seed)
    truth = draw.random(count)
    low, high = np.sort(draw.random((2, count)), axis=0) + bias
    moved = radius(low, high, truth, coverage)
    rank = math.ceil((count + 1) * coverage)
    more, less = moved + 1e-9, moved - 1e-9
    assert covered(low - more, high + more, truth) >= rank / count
    assert covered(low - less, high + less, truth) < rank / count
    ends = intervals(low, high, moved, truth)
    assert (ends[0] <= truth).all()
    assert (truth <= ends[1]).all()


def test_few_pairs_promise_nothing() -> None:
    zeros = np.zeros(8)
    assert math.isinf(radius(zeros, zeros, zeros, 0.9))
    low, high = intervals(zeros, zeros, math.inf, zeros)
    assert (low.tolist(), high.tolist()) == ([0.0] * 8, [1.0] * 8)


def test_coverage_over_many_worlds_is_what_is_promised() -> None:
    """New truths lie in it with probability 0.9 to 0.9 + 1 / (n + 1), whatever the model."""
    draw = np.random.default_rng(0)
    count, held = 99, []
    for _ in range(400):
        truth = draw.beta(2, 5, size=count + 50)
        centre = truth + draw.normal(scale=0.2, size=len(truth)) * (0.2 + truth)
        low, high = centre - 0.05, centre + 0.05
        moved = radius(low[:count], high[:count], truth[:count], 0.9)
        held.append(covered(low[count:] - moved, high[count:] + moved, truth[count:]))
    assert np.mean(held) == pytest.approx(0.9, abs=0.01)


@given(st.lists(st.tuples(*[st.floats(-0.5, 1.5)] * 4), min_size=1, max_size=20))
@settings(max_examples=60, deadline=None)
def test_magnitude_times_confidence_is_the_gap(rows: list[tuple[float, ...]]) -> None:
    confidence, gap, low, high = (np.array(column) for column in zip(*rows, strict=True))
    shares = np.full((len(gap), 6), 1 / 6)
    found = calibrated(Raw(shares, confidence, gap, low, high, np.zeros(len(gap))), 0.01)
    np.testing.assert_allclose(found.magnitude * found.confidence, found.gap, atol=1e-12)
    for values in (found.magnitude, found.confidence, found.low, found.high):
        assert ((values >= 0) & (values <= 1)).all()
    assert ((found.low <= found.gap) & (found.gap <= found.high)).all()


def test_features_decide_alone() -> None:
    predictor, _ = trained()
    texts, _ = world(20, seed=8)
    raw = predictor.model.of(features_of(texts, predictor.model.known))
    np.testing.assert_array_equal(raw.gap, predictor.model.predict(texts).gap)


@pytest.mark.parametrize(("calibrate", "fair_share"), [(0.15, 1.0), (0.15, 0.5), (0.4, 0.5)])
def test_the_shares_are_those_that_were_asked_for(calibrate: float, fair_share: float) -> None:
    count = 20_000
    fair = np.arange(count) < fair_share * count
    section = DistillSection(calibrate=calibrate)
    split = split_by([str(i) for i in range(count)], section, fair)
    fair_count = int(fair.sum())
    wanted = min(calibrate * count, fair_count / 4)  # half of the fair rows train, whatever comes
    for part in (split.calibrate, split.test):
        assert len(part) == pytest.approx(wanted, rel=0.05)
    assert fair[split.fit].sum() >= 0.48 * fair_count
