"""Stage `distill`: a predictor of category, magnitude, confidence and beta from the annotations.

In: `annotations/`, `pairs/`. Out: `predictor/`: the model, its record, its card, and what it says
of the pairs that tested it. Invariant: the same annotations and options give the same files.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sp2dpo_ray.config import Config
from sp2dpo_ray.console import say
from sp2dpo_ray.core.artifact import Draft
from sp2dpo_ray.core.files import (
    ANNOTATIONS,
    CARD,
    EVAL,
    FRONTIER,
    FRONTIER_TEXT,
    HELD_OUT,
    PREDICTOR_FIGURES,
    TRAIN,
)
from sp2dpo_ray.core.hashing import sha256_hex
from sp2dpo_ray.core.schedule.ensemble import effective_gap
from sp2dpo_ray.core.schedule.grid import Grid
from sp2dpo_ray.core.schedule.mapping import BetaMap
from sp2dpo_ray.core.schedule.reading import batches_of, read_grids
from sp2dpo_ray.core.taxonomy import CATEGORIES
from sp2dpo_ray.distill.card import card, is_useless
from sp2dpo_ray.distill.features import FEATURES_VERSION
from sp2dpo_ray.distill.figures import figures_of, skill
from sp2dpo_ray.distill.frontier import Panel, frontier, left_out, markdown
from sp2dpo_ray.distill.predictions import Predictions
from sp2dpo_ray.distill.predictor import VERSION, split_by, train
from sp2dpo_ray.distill.targets import Targets, targets_of, told_by_teachers
from sp2dpo_ray.distill.texts import Texts, texts_of
from sp2dpo_ray.errors import ConfigError, DataError
from sp2dpo_ray.report.costs import annotator_costs
from sp2dpo_ray.run import Run, Summary
from sp2dpo_ray.stages import ray_session
from sp2dpo_ray.stages.mix_rounds import first_round
from sp2dpo_ray.stages.panel import panel_of

PROMPT, PAIR = "prompt", "pair"


def distill(run: Run) -> Summary:
    """Train, calibrate, test, publish."""
    section, mapping = run.config.distill, run.config.mapping
    refuse_predictors(run)
    drawn = first_round(run)
    settings: dict[str, Any] = {
        "distill": section.model_dump(mode="json"),
        "envelope": [mapping.beta_min, mapping.beta_max],
        "versions": [VERSION, FEATURES_VERSION],
        "drawn": drawn and sha256_hex(drawn),
    }
    if section.frontier:
        settings["map"] = asdict(_map_of_frontier(run.config)[0])
    inputs = {"prepare": run.path("pairs"), "annotate": run.path("annotations")}
    provenance = run.provenance("distill", settings, inputs)

    def make(draft: Draft) -> None:
        start = time.perf_counter()
        targets = answered(run)
        texts = texts_by_id(run, targets.ids)
        fair = None if drawn is None else np.isin(targets.ids.to_pylist(), drawn)
        split = split_by(texts.prompt.to_pylist(), section, fair)
        with training(run) as scratch:
            predictor = train(
                texts, targets, split, section, origin_of(run, targets, PROMPT), scratch
            )
        predictor.save(draft.path)
        found = predictor.predict(texts.take(split.test))
        width = mapping.beta_max - mapping.beta_min
        figures = figures_of(found, texts, targets, split, width)
        (draft.path / CARD).write_text(card(predictor.record, figures), encoding="utf-8")
        (draft.path / PREDICTOR_FIGURES).write_text(json.dumps(figures, indent=1), encoding="utf-8")
        if section.frontier:
            _write_frontier(run, draft, texts, targets)
        draft.write_table(HELD_OUT, _tested(found, targets.take(split.test)))
        draft.summary |= {
            "pairs": len(targets),
            "skill": skill(figures),
            **{name: figures.get(name) for name in (
                "spearman", "mae", "mae_constant", "mae_length", "coverage", "width",
                "category_accuracy")},
        }  # fmt: skip
        if is_useless(figures):
            say("distill: its error is that of a constant; see predictor/card.md before you use it")
        say(f"distill: {len(targets):,} pairs in {time.perf_counter() - start:.1f} s")

    return run.publish_once(run.path("predictor"), provenance, make)


def refuse_predictors(run: Run) -> None:
    """A predictor's answers are what others said; one that learned from them would repeat it."""
    if names := [teacher.name for teacher in run.config.teachers if teacher.is_predictor]:
        raise ConfigError(
            f"teachers: {names} are predictors, and nothing is learned from what a predictor says; "
            "distill and annotate.mix want a panel of teachers alone"
        )


@contextmanager
def training(run: Run) -> Iterator[Path]:
    """A folder for an encoder's training, and a Ray for it; the light kind needs neither."""
    scratch = run.path(".distill")
    with ray_session(run.config.cluster.address) if run.config.distill.encoder else nullcontext():
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def answered(run: Run) -> Targets:
    """What the panel said of the training pairs that it answered whole."""
    return targets_of(_grid(run))


def _grid(run: Run) -> Grid:
    batches = batches_of(run.path("annotations", ANNOTATIONS))
    return read_grids(batches, run.config.panel, (TRAIN, EVAL)).grids[TRAIN]


def _write_frontier(run: Run, draft: Draft, texts: Texts, targets: Targets) -> None:
    """What asking less would have cost, from the pairs that were asked about in full."""
    section = run.config.distill
    whole = told_by_teachers(_grid(run))
    gaps = effective_gap(whole.magnitude, whole.confidence)
    rows = np.flatnonzero(~np.isnan(gaps).any(axis=(1, 2)))  # without those of economy mode
    if not len(rows):
        raise DataError(
            "distill.frontier needs pairs whose every call was answered, and economy mode left "
            "calls of each out; leave out distill.frontier, or annotate without early_stop"
        )
    panel = Panel(texts.take(rows), targets.take(rows), gaps[rows], _usd_per_call(run))
    beta_of, under = _map_of_frontier(run.config)
    points = frontier(panel, section, beta_of, section.frontier)
    text = markdown(points, [under, *left_out(panel, section, section.frontier)])
    (draft.path / FRONTIER_TEXT).write_text(text, encoding="utf-8")
    content = json.dumps([asdict(point) for point in points], indent=1)
    (draft.path / FRONTIER).write_text(content, encoding="utf-8")


def _map_of_frontier(config: Config) -> tuple[BetaMap, str]:
    """The run's own map where a gap is all that it reads, and words for it."""
    mapping = config.mapping
    own = mapping.map()
    if own.of_gap_alone:
        return own, f"Betas are those of this run's map ({own.shape})."
    linear = BetaMap(beta_min=mapping.beta_min, beta_max=mapping.beta_max)  # Eq. 15
    return linear, (
        "Betas are those of the linear map (Eq. 15) with this run's envelope: its own reads more "
        "than the gap."
    )


def _usd_per_call(run: Run) -> float | None:
    """Mean price of an answer over the panel; None where a price or the tokens are missing."""
    columns = ["teacher", "key", "prompt_tokens", "completion_tokens"]
    calls = pq.read_table(run.path("annotations", ANNOTATIONS), columns=columns)
    rows = annotator_costs(calls, {teacher.name: teacher.rate for teacher in run.config.teachers})
    if len(rows) < len(run.config.teachers) or any(row.usd is None for row in rows):
        return None
    return sum(row.usd or 0.0 for row in rows) / sum(row.answers for row in rows)


def texts_by_id(run: Run, ids: pa.Array) -> Texts:
    """The training pairs' texts in the order of these ids."""
    columns = ["prompt_id", "prompt", "chosen", "rejected"]
    table = pq.read_table(run.pairs_file(TRAIN), columns=columns)
    return texts_of(table.take(pc.index_in(ids, table["prompt_id"].combine_chunks())))


def origin_of(run: Run, targets: Targets, apart: str) -> dict[str, Any]:
    """Whose answers these are, and what is on one side only of training and test."""
    settings = panel_of(run).settings
    seen = np.flatnonzero(targets.categories.sum(axis=0))
    return {
        "teachers": settings["teachers"],
        "prompts": settings["prompts"],
        "variants": list(run.config.panel.variants),
        "redact": settings["redact"],
        "apart": apart,
        "categories": [str(CATEGORIES[code]) for code in seen],
    }


def _tested(found: Predictions, targets: Targets) -> pa.Table:
    names = pa.array([str(name) for name in CATEGORIES])
    return pa.table(
        {
            "prompt_id": targets.ids,
            "gap": targets.gap,
            "confidence": targets.confidence,
            "predicted_gap": found.gap,
            "predicted_low": found.low,
            "predicted_high": found.high,
            "predicted_confidence": found.confidence,
            "predicted_category": names.take(pa.array(found.category)),
        }
    )
