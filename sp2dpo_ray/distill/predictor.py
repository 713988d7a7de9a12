"""A predictor as an artifact: trained, calibrated on pairs apart, tested on others, saved.

In: texts and targets. Out: a folder's files and figures; a `Predictor` from such a folder.
Invariant: what trains, what calibrates and what tests have no key in common; what is loaded is
checked against its manifest.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sp2dpo_ray.config.distill import DistillSection
from sp2dpo_ray.core.hashing import uniform_draws
from sp2dpo_ray.distill import light
from sp2dpo_ray.distill.conformal import radius
from sp2dpo_ray.distill.features import FEATURES_VERSION, features_of
from sp2dpo_ray.distill.predictions import SERVED_BY_PREDICTOR, Predictions, Raw, calibrated
from sp2dpo_ray.distill.record import RECORD, read_predictor
from sp2dpo_ray.distill.targets import Targets
from sp2dpo_ray.distill.texts import Texts
from sp2dpo_ray.errors import ArtifactError, DataError

VERSION = 1


class Model(Protocol):
    """What a kind of predictor must be able to do."""

    def predict(self, texts: Texts, threads: int = 0) -> Raw:
        """One row a pair."""
        ...

    def save(self, folder: Path) -> None:
        """Write its files."""
        ...


@dataclass(frozen=True, slots=True)
class Split:
    """Rows that train, calibrate and test; folds: of the rows that train, which of them are left
    out together. keys: how many different ones all rows have."""

    fit: NDArray[np.int64]
    calibrate: NDArray[np.int64]
    test: NDArray[np.int64]
    folds: NDArray[np.int64]
    keys: int

    @property
    def is_whole(self) -> bool:
        """Whether no part and no fold is empty."""
        return bool(
            len(self.calibrate) and len(self.test) and len(np.unique(self.folds)) == light.FOLDS
        )


def split_by(
    keys: list[str], section: DistillSection, fair: NDArray[np.bool_] | None = None
) -> Split:
    """keys: of each row what must not be on two sides: its prompt where the predictor will see new
    prompts, its id where it will speak of the same data set's other pairs. fair: (N,) rows that
    were drawn at random; only those calibrate and test. None: all."""
    draws = uniform_draws(keys, seed=section.seed, purpose="distill")
    fair = np.ones(len(keys), bool) if fair is None else fair
    # of all rows, taken from the fair ones; at least half of these train
    share = min(section.calibrate * len(fair) / max(int(fair.sum()), 1), 0.25)
    calibrate, test = fair & (draws < share), fair & (draws >= share) & (draws < 2 * share)
    different = np.unique(draws[fair])
    taken = np.unique(draws[calibrate | test])
    if not (calibrate.any() and test.any() and len(different) - len(taken) >= light.FOLDS):
        # of few keys the draws may leave a side without one, their ranks do not
        rank, count = np.searchsorted(different, draws), max(1, round(share * len(different)))
        calibrate, test = fair & (rank < count), fair & (rank >= count) & (rank < 2 * count)
    # a row that is not fair is left out where another of its key calibrates or tests
    fit = np.flatnonzero(~np.isin(draws, draws[calibrate | test]))
    return Split(
        fit, np.flatnonzero(calibrate), np.flatnonzero(test), _folds(draws[fit]),
        len(np.unique(draws)),
    )  # fmt: skip


def _folds(draws: NDArray[np.float64]) -> NDArray[np.int64]:
    """Rows of one key are in one fold, and none is empty where there are as many keys."""
    # another stretch of the same draws: rows that train are spread over all of them but the first
    folds = np.minimum((draws * 1000 % 1 * light.FOLDS).astype(np.int64), light.FOLDS - 1)
    if len(np.unique(folds)) < light.FOLDS:
        folds = np.unique(draws, return_inverse=True)[1].astype(np.int64) % light.FOLDS
    return folds


@dataclass(frozen=True, slots=True)
class Predictor:
    """digest: of the artifact; '' while it is not published. record: what `RECORD` holds."""

    model: Model
    moved_by: float
    record: dict[str, Any]
    digest: str = ""

    def predict(self, texts: Texts, threads: int = 0) -> Predictions:
        return calibrated(self.model.predict(texts, threads), self.moved_by)

    @property
    def name(self) -> str:
        """As the model that served."""
        return SERVED_BY_PREDICTOR + self.digest[:12]

    def save(self, folder: Path) -> None:
        self.model.save(folder)
        text = json.dumps(self.record, indent=1, allow_nan=False)
        (folder / RECORD).write_text(text + "\n", encoding="utf-8")


def train(
    texts: Texts, targets: Targets, split: Split, section: DistillSection, origin: dict[str, Any],
    scratch: Path | None = None,
) -> Predictor:  # fmt: skip
    """Fit and calibrate. origin: the teachers and prompts that gave the targets. scratch: a folder
    that every node sees, for an encoder.

    Raises DataError for too few pairs, or too few keys to keep the sides apart.
    """
    if len(targets) < section.least_pairs:
        raise DataError(
            f"distill: {len(targets):,} pairs have a whole set of annotations, and "
            f"distill.least_pairs asks for {section.least_pairs:,}; annotate more"
        )
    if not split.is_whole:
        word = origin.get("apart", "pair")
        raise DataError(
            f"distill: the {len(targets):,} annotated pairs have {split.keys:,} different {word}s, "
            f"and those that train, calibrate and test must have no {word} in common; annotate "
            f"pairs of other {word}s"
        )
    model = _fitted(texts.take(split.fit), targets.take(split.fit), split.folds, section, scratch)
    raw = model.predict(texts.take(split.calibrate))
    truth = targets.gap[split.calibrate]
    moved_by = radius(raw.low, raw.high, truth, section.coverage)
    record = {
        "version": VERSION,
        "features": FEATURES_VERSION,
        "kind": section.kind,
        "coverage": section.coverage,
        "moved_by": moved_by if math.isfinite(moved_by) else None,
        "pairs": {
            "fit": len(split.fit),
            "calibrate": len(split.calibrate),
            "test": len(split.test),
        },
        **origin,
    }
    return Predictor(model, moved_by, record)


def _fitted(
    texts: Texts, targets: Targets, folds: NDArray[np.int64], section: DistillSection,
    scratch: Path | None,
) -> Model:  # fmt: skip
    if section.encoder is not None:
        from sp2dpo_ray.distill.encoder_training import fit  # only then is torch needed

        assert scratch is not None
        return fit(
            texts, targets, section.encoder,
            coverage=section.coverage, swap=section.swap, seed=section.seed, scratch=scratch,
        )  # fmt: skip
    return light.fit(
        features_of(texts), targets, folds,
        coverage=section.coverage, rounds=section.rounds, swap=section.swap, seed=section.seed,
    )  # fmt: skip


def load_predictor(folder: Path) -> Predictor:
    """The predictor of a published folder.

    Raises ArtifactError for one that is missing, altered, or of another version.
    """
    manifest, record = read_predictor(folder)
    for name, ours in (("version", VERSION), ("features", FEATURES_VERSION)):
        if record[name] != ours:
            raise ArtifactError(
                f"{folder}: {RECORD}: {name} is {record[name]}, this code reads {ours}; run "
                "distill again"
            )
    moved_by = math.inf if record["moved_by"] is None else record["moved_by"]
    return Predictor(_load(record["kind"], folder), moved_by, record, manifest.digest)


def _load(kind: str, folder: Path) -> Model:
    if kind == "encoder":
        from sp2dpo_ray.distill.encoder import load

        return load(folder)
    return light.load(folder)
