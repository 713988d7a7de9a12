"""Annotation shared between teachers and a predictor: rounds of asking and learning.

In: `pairs/`, the panel, `annotate.mix`. Out: `mix/`: which pairs each round chose, the predictor
that was learned from their answers, its figures and card. Invariant: which pairs a round chooses is
on disk before the first of them is asked about, so a killed command goes on with the same ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sp2dpo_ray.annotate.answers import Answers
from sp2dpo_ray.annotate.journal import Journal
from sp2dpo_ray.annotate.table import Predict, write_annotations
from sp2dpo_ray.config.distill import MixSection
from sp2dpo_ray.console import say
from sp2dpo_ray.core.artifact import Draft
from sp2dpo_ray.core.files import ANNOTATIONS, CARD, PREDICTOR_FIGURES, TRAIN
from sp2dpo_ray.core.pairs import Pair
from sp2dpo_ray.core.schedule.reading import batches_of, read_grids
from sp2dpo_ray.core.taxonomy import CATEGORIES
from sp2dpo_ray.distill.card import card, is_useless
from sp2dpo_ray.distill.choice import at_random, widest
from sp2dpo_ray.distill.features import FEATURES_VERSION
from sp2dpo_ray.distill.figures import figures_of
from sp2dpo_ray.distill.predictor import VERSION, Predictor, load_predictor, split_by, train
from sp2dpo_ray.distill.targets import Targets, targets_of
from sp2dpo_ray.distill.texts import texts_of_pairs
from sp2dpo_ray.errors import DataError, Stopped
from sp2dpo_ray.run import Run
from sp2dpo_ray.stages.distill import PAIR, origin_of, refuse_predictors, texts_by_id, training
from sp2dpo_ray.stages.mix_rounds import (
    FOLDER,
    ROUNDS,
    STATE,
    keep_rounds,
    key_of,
    rounds_on_disk,
    share_of,
)
from sp2dpo_ray.stages.panel import PanelWork

Ask = Callable[[PanelWork], None]


@dataclass(frozen=True, slots=True)
class Mixed:
    """What is left for the table: pairs that nobody was asked about, and who speaks for them."""

    panel: PanelWork
    predict: Predict


def mixed(run: Run, panel: PanelWork, ask: Ask) -> Mixed:
    """Ask about a share of the training pairs, round by round, and learn from the answers."""
    mix = run.config.annotate.mix
    assert mix is not None
    refuse_predictors(run)
    ids = pq.read_table(run.pairs_file(TRAIN), columns=["prompt_id"])["prompt_id"].to_pylist()
    rounds = rounds_on_disk(run, panel, ids)
    asked: set[str] = set()
    for number in range(mix.rounds):
        if number == len(rounds):
            rounds.append(_choose(run, panel, ids, rounds, mix))
            keep_rounds(run, panel, ids, rounds)
        asked |= set(rounds[number])
        say(
            f"annotate: round {number + 1} of {mix.rounds}: {len(rounds[number]):,} pairs, "
            f"{len(asked):,} of {len(ids):,} in all"
        )
        try:
            ask(panel.only(asked, ids))
        except Stopped as error:
            raise _with_what_is_there(error, run, panel, ids, rounds) from None
    predictor = _publish(run, panel, ids, rounds)
    return Mixed(panel.only(asked, ids), _speaker(predictor, asked))


def _with_what_is_there(
    error: Stopped, run: Run, panel: PanelWork, ids: list[str], rounds: list[list[str]]
) -> Stopped:
    """Where the money ended the asking: how far it came, and with which share it has sufficed."""
    mix = run.config.annotate.mix
    assert mix is not None
    if type(error) is not Stopped or run.config.budget.usd is None:
        return error
    asked = {name for part in rounds for name in part}
    text = (
        f"{error}\nannotate.mix: {len(_answered(run, panel.only(asked, ids))):,} of the "
        f"{share_of(mix, ids):,} pairs that its rounds ask about are answered"
    )
    # a smaller share draws from the same order, and so the pairs of the rounds that are whole
    whole = rounds[:-1] if mix.choice == "random" else rounds[:-1][:1]
    if count := sum(map(len, whole)):
        text += (
            f". The money that is spent has sufficed for {count:,}: --set annotate.mix.share="
            f"{count / len(ids):.8g} --set annotate.mix.rounds=1 asks about no others, and the "
            "predictor speaks for the rest"
        )
    return Stopped(text)


def _choose(
    run: Run, panel: PanelWork, ids: list[str], rounds: list[list[str]], mix: MixSection
) -> list[str]:
    """The pairs of the next round."""
    whole = share_of(mix, ids)
    first = max(1, round(mix.first * whole)) if mix.rounds > 1 else whole
    if not rounds:
        if first < run.config.distill.least_pairs:
            raise DataError(
                f"annotate.mix: its first round would ask about {first:,} of {len(ids):,} pairs, "
                f"and a predictor needs {run.config.distill.least_pairs:,} "
                "(distill.least_pairs); raise annotate.mix.share or annotate.mix.first"
            )
        return [ids[row] for row in at_random(ids, first, mix.seed)]
    done = {name for part in rounds for name in part}
    count = -(-(whole - len(done)) // (mix.rounds - len(rounds)))
    rest = [name for name in ids if name not in done]
    if mix.choice == "random":
        return [rest[row] for row in at_random(rest, count, mix.seed)]
    predictor, _ = _learned(run, _answered(run, panel.only(done, ids)), rounds)
    found = predictor.predict(texts_by_id(run, pa.array(rest)))
    return [rest[row] for row in widest(rest, found, count)]


def _learned(
    run: Run, targets: Targets, rounds: list[list[str]]
) -> tuple[Predictor, dict[str, Any]]:
    """The predictor of all rounds; the first, which is fair, calibrates and tests it."""
    section, mapping = run.config.distill, run.config.mapping
    texts = texts_by_id(run, targets.ids)
    fair = np.isin(np.array(targets.ids.to_pylist()), np.array(rounds[0]))
    split = split_by(targets.ids.to_pylist(), section, fair)
    with training(run) as scratch:
        predictor = train(texts, targets, split, section, origin_of(run, targets, PAIR), scratch)
    found = predictor.predict(texts.take(split.test))
    figures = figures_of(found, texts, targets, split, mapping.beta_max - mapping.beta_min)
    return predictor, figures


def _answered(run: Run, panel: PanelWork) -> Targets:
    """What the journal holds of these pairs."""
    scratch = run.path(STATE, ANNOTATIONS)
    scratch.parent.mkdir(parents=True, exist_ok=True)
    answers = Answers(Journal(panel.spec.place).new_entries())
    try:
        files = {TRAIN: panel.files[TRAIN]}
        write_annotations(scratch, files, panel.expected, answers)
        grids = read_grids(batches_of(scratch), run.config.panel, (TRAIN,)).grids
        targets = targets_of(grids[TRAIN])
    finally:
        answers.close()
        scratch.unlink(missing_ok=True)
    # a pair that repeats the texts of another has its answers, and must not count twice
    ids = targets.ids.to_pylist()
    return targets.take(np.flatnonzero([name not in panel.left_out for name in ids]))


def _publish(run: Run, panel: PanelWork, ids: list[str], rounds: list[list[str]]) -> Predictor:
    folder = run.path(FOLDER)
    asked = {name for part in rounds for name in part}
    targets = _answered(run, panel.only(asked, ids))
    # asked again, refused once more or read by other rules, the same pairs teach something else
    settings = [key_of(run, panel, ids), targets.digest, VERSION, FEATURES_VERSION]
    provenance = run.provenance("distill", settings, {"prepare": run.path("pairs")})

    def make(draft: Draft) -> None:
        predictor, figures = _learned(run, targets, rounds)
        predictor.save(draft.path)
        (draft.path / CARD).write_text(card(predictor.record, figures), encoding="utf-8")
        for name, value in ((PREDICTOR_FIGURES, figures), (ROUNDS, rounds)):
            (draft.path / name).write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
        draft.summary |= {"rounds": [len(part) for part in rounds], "mae": figures.get("mae")}
        if is_useless(figures):
            say(
                "annotate.mix: the predictor's error is that of a constant, and it speaks for all "
                "other pairs; see mix/card.md before you use them, or raise annotate.mix.share"
            )

    run.publish_once(folder, provenance, make)
    return load_predictor(folder)


def _speaker(predictor: Predictor, asked: set[str]) -> Predict:
    """Rows in the teachers' place, for the pairs that they were not asked about."""

    def predict(pairs: list[Pair]) -> list[dict[str, Any] | None]:
        silent = [pair for pair in pairs if pair.prompt_id not in asked]
        if not silent:
            return [None] * len(pairs)
        found = predictor.predict(texts_of_pairs(silent))
        notes = found.notes()
        told: dict[str, dict[str, Any]] = {
            pair.prompt_id: {
                "category": str(CATEGORIES[found.category[row]]),
                "magnitude": float(found.magnitude[row]),
                "confidence": float(found.confidence[row]),
                "served_model": predictor.name,
                "detail": notes[row],
            }
            for row, pair in enumerate(silent)
        }
        return [told.get(pair.prompt_id) for pair in pairs]

    return predict
