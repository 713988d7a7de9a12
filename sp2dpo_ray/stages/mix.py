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
from sp2dpo_ray.core.artifact import Draft, write_atomically
from sp2dpo_ray.core.files import ANNOTATIONS, CARD, PREDICTOR_FIGURES, TRAIN
from sp2dpo_ray.core.hashing import sha256_hex
from sp2dpo_ray.core.pairs import Pair
from sp2dpo_ray.core.schedule.reading import batches_of, read_grids
from sp2dpo_ray.core.taxonomy import CATEGORIES
from sp2dpo_ray.distill.card import card
from sp2dpo_ray.distill.choice import at_random, widest
from sp2dpo_ray.distill.figures import figures_of
from sp2dpo_ray.distill.predictor import Predictor, load_predictor, split_by, train
from sp2dpo_ray.distill.targets import Targets, targets_of
from sp2dpo_ray.distill.texts import texts_of_pairs
from sp2dpo_ray.errors import DataError
from sp2dpo_ray.run import Run
from sp2dpo_ray.stages.distill import PAIR, origin_of, texts_by_id, training
from sp2dpo_ray.stages.panel import PanelWork

ROUNDS = "rounds.json"
FOLDER = "mix"
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
    ids = pq.read_table(run.pairs_file(TRAIN), columns=["prompt_id"])["prompt_id"].to_pylist()
    state = run.path(f".{FOLDER}", f"{_key(run, panel, ids)[:16]}.json")
    rounds: list[list[str]] = json.loads(state.read_text("utf-8")) if state.exists() else []
    asked: set[str] = set()
    for number in range(mix.rounds):
        if number == len(rounds):
            rounds.append(_choose(run, panel, ids, rounds, mix))
            state.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(state, json.dumps(rounds))
        asked |= set(rounds[number])
        say(
            f"annotate: round {number + 1} of {mix.rounds}: {len(rounds[number]):,} pairs, "
            f"{len(asked):,} of {len(ids):,} in all"
        )
        ask(panel.only(asked, ids))
    predictor = _publish(run, panel, ids, rounds)
    return Mixed(panel.only(asked, ids), _speaker(predictor, asked))


def _key(run: Run, panel: PanelWork, ids: list[str]) -> str:
    config = run.config
    assert config.annotate.mix is not None
    return sha256_hex(
        [panel.settings, config.annotate.mix.model_dump(mode="json"),
         config.distill.of_predictor, ids]
    )  # fmt: skip


def _choose(
    run: Run, panel: PanelWork, ids: list[str], rounds: list[list[str]], mix: MixSection
) -> list[str]:
    """The pairs of the next round."""
    whole = max(1, round(mix.share * len(ids)))
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
    predictor, _ = _learned(run, panel, ids, rounds)
    found = predictor.predict(texts_by_id(run, pa.array(rest)))
    return [rest[row] for row in widest(rest, found, count)]


def _learned(
    run: Run, panel: PanelWork, ids: list[str], rounds: list[list[str]]
) -> tuple[Predictor, dict[str, Any]]:
    """The predictor of all rounds; the first, which is fair, calibrates and tests it."""
    section, mapping = run.config.distill, run.config.mapping
    asked = {name for part in rounds for name in part}
    targets = _answered(run, panel.only(asked, ids))
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
    scratch = run.path(f".{FOLDER}", ANNOTATIONS)
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
    provenance = run.provenance("distill", _key(run, panel, ids), {"prepare": run.path("pairs")})

    def make(draft: Draft) -> None:
        predictor, figures = _learned(run, panel, ids, rounds)
        predictor.save(draft.path)
        (draft.path / CARD).write_text(card(predictor.record, figures), encoding="utf-8")
        for name, value in ((PREDICTOR_FIGURES, figures), (ROUNDS, rounds)):
            (draft.path / name).write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
        draft.summary |= {"rounds": [len(part) for part in rounds], "mae": figures.get("mae")}

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
