"""The light predictor: ridge on hashed words, boosted trees on what a response looks like.

In: features and targets. Out: category shares, confidence, effective gap with low and high
quantiles. Trained in seconds on two cores, saved as text and plain arrays (nothing is unpickled).
Invariant: the same features, targets and options give the same model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import Ridge

from sp2dpo_ray.core.taxonomy import CATEGORIES
from sp2dpo_ray.distill.features import (
    GRAM_BITS,
    NOVEL_BITS,
    PAIRS_AT_ONCE,
    Features,
    features_of,
    known_words,
)
from sp2dpo_ray.distill.predictions import Raw
from sp2dpo_ray.distill.targets import Targets
from sp2dpo_ray.distill.texts import Texts
from sp2dpo_ray.errors import ConfigError

RIDGE = 0.1
RIDGE_STEPS = 40
FOLDS = 3
GAP, LOW, HIGH, CONFIDENCE, CATEGORY = "gap", "low", "high", "confidence", "category"
ARRAYS, CLASSES = "arrays.npz", "classes.json"
TREES: dict[str, Any] = {
    "learning_rate": 0.08, "num_leaves": 15, "min_data_in_leaf": 40, "lambda_l2": 5.0,
    "max_bin": 63,
    "deterministic": True, "force_row_wise": True, "verbosity": -1,
}  # fmt: skip
CATEGORY_ROUNDS = 0.4  # of the others' rounds: it has six trees a round


def lightgbm() -> Any:
    """The library, or how to get it."""
    try:
        import lightgbm
    except ModuleNotFoundError as error:
        raise ConfigError(
            "distill: lightgbm is not installed here; run: pip install 'sp2dpo-ray[distill]'"
        ) from error
    except OSError as error:  # its wheel leaves the OpenMP runtime to the system
        raise ConfigError(
            f"distill: lightgbm cannot be loaded: {error}; install the system's OpenMP runtime "
            "(Debian, Ubuntu: apt-get install libgomp1)"
        ) from error
    return lightgbm


@dataclass(frozen=True, slots=True)
class LightModel:
    """coefficients: (2 ** GRAM_BITS, 2) of the hashed words, for confidence and for the gap. known:
    marks of words that were seen. classes: the categories that were seen, by code."""

    coefficients: NDArray[np.float32]
    known: NDArray[np.bool_]
    classes: tuple[int, ...]
    trees: Mapping[str, Any]

    def predict(self, texts: Texts, threads: int = 0) -> Raw:
        """One row a pair; threads: 0 takes all."""
        if not len(texts):  # the trees refuse no row at all
            return Raw.nothing()
        pieces = [
            self.of(features_of(texts.slice(start, PAIRS_AT_ONCE), self.known), threads)
            for start in range(0, len(texts), PAIRS_AT_ONCE)
        ]
        return Raw.joined(pieces)

    def of(self, features: Features, threads: int = 0) -> Raw:
        dense = features.dense(features.scores(self.coefficients))
        found = {
            name: trees.predict(dense, num_threads=threads) for name, trees in self.trees.items()
        }
        shares = np.zeros((len(features), len(CATEGORIES)))
        shares[:, list(self.classes)] = found.get(CATEGORY, np.ones((len(features), 1)))
        return Raw(
            shares, found[CONFIDENCE], found[GAP], found[LOW], found[HIGH],
            features.unknown.astype(np.float64),
        )  # fmt: skip

    def save(self, folder: Path) -> None:
        np.savez(
            folder / ARRAYS, coefficients=self.coefficients.astype(np.float16),
            known=np.packbits(self.known),
        )  # fmt: skip
        (folder / CLASSES).write_text(json.dumps(self.classes), encoding="utf-8")
        for name, trees in self.trees.items():
            trees.save_model(str(folder / f"{name}.txt"))


def load(folder: Path) -> LightModel:
    """The model of a folder that `save` wrote."""
    with np.load(folder / ARRAYS, allow_pickle=False) as arrays:
        coefficients = arrays["coefficients"].astype(np.float32)
        known = np.unpackbits(arrays["known"]).astype(bool)
    classes = tuple(json.loads((folder / CLASSES).read_text(encoding="utf-8")))
    booster = lightgbm().Booster
    names = [GAP, LOW, HIGH, CONFIDENCE, *([CATEGORY] if len(classes) > 1 else [])]
    trees = {name: booster(model_file=str(folder / f"{name}.txt")) for name in names}
    return LightModel(coefficients, known, classes, trees)


def fit(
    features: Features, targets: Targets, folds: NDArray[np.int64], *,
    coverage: float, rounds: int, swap: bool, seed: int,
) -> LightModel:  # fmt: skip
    """Train on pairs whose rows are the same in all three.

    folds: below FOLDS; what the trees learn of the words' scores is how they do on rows of another
    fold. swap: learn every pair turned round, too, where confidence is one less the other.
    """
    signed = np.column_stack([targets.confidence - 0.5, targets.gap - targets.turned_gap])
    grams = features.first_grams - features.second_grams
    scores = np.zeros((len(targets), 2), np.float32)
    for fold in range(FOLDS):  # trees must not see scores of pairs that the ridge was fitted on
        out = folds == fold
        scores[out] = grams[out] @ _ridge(grams[~out], signed[~out])
    # what is saved in half precision is used in half precision
    coefficients = _ridge(grams, signed).astype(np.float16).astype(np.float32)
    rows = [features.dense(scores)]
    gap, confidence = [targets.gap], [targets.confidence]
    if swap:
        rows.append(features.dense(scores, swapped=True))
        gap.append(targets.turned_gap)
        confidence.append(1 - targets.confidence)
    table = _Table(np.vstack(rows), rounds, seed)
    gaps = np.concatenate(gap)
    tail = (1 - coverage) / 2
    trees = {
        GAP: table.fit(gaps, objective="regression"),
        LOW: table.fit(gaps, objective="quantile", alpha=tail),
        HIGH: table.fit(gaps, objective="quantile", alpha=1 - tail),
        CONFIDENCE: table.fit(np.concatenate(confidence), objective="cross_entropy"),
    }
    classes = tuple(int(code) for code in np.flatnonzero(targets.categories.sum(axis=0)))
    if len(classes) > 1:
        trees[CATEGORY] = _categories(rows[0], targets.categories, classes, rounds, seed)
    return LightModel(coefficients, known_words(features), classes, trees)


def _ridge(grams: Any, signed: NDArray[np.float64]) -> NDArray[np.float32]:
    # stopping early is a part of the penalty; more steps take longer and gain nothing
    model = Ridge(RIDGE, fit_intercept=False, solver="lsqr", max_iter=RIDGE_STEPS, tol=1e-6)
    fitted = model.fit(grams.astype(np.float64), signed)
    return np.asarray(fitted.coef_.T, np.float32).reshape(1 << GRAM_BITS, 2)


class _Table:
    """The rows that several trees are grown on; binned once."""

    def __init__(self, rows: NDArray[np.float32], rounds: int, seed: int) -> None:
        self._library = lightgbm()
        self._data = self._library.Dataset(rows, params=TREES, free_raw_data=False)
        self._rounds, self._seed = rounds, seed

    def fit(self, labels: NDArray[np.float64], **objective: Any) -> Any:
        self._data.set_label(labels)
        options = TREES | {"seed": self._seed} | objective
        return self._library.train(options, self._data, num_boost_round=self._rounds)


def _categories(
    rows: NDArray[np.float32], shares: NDArray[np.float64], classes: tuple[int, ...],
    rounds: int, seed: int,
) -> Any:  # fmt: skip
    """Cross-entropy against the calls' shares: a row for each category that a pair was given."""
    pair, place = np.nonzero(shares[:, list(classes)])
    library = lightgbm()
    data = library.Dataset(
        rows[pair], place, weight=shares[:, list(classes)][pair, place], params=TREES
    )
    options = TREES | {"seed": seed, "objective": "multiclass", "num_class": len(classes)}
    return library.train(options, data, num_boost_round=max(1, round(CATEGORY_ROUNDS * rounds)))


assert NOVEL_BITS >= 3  # packbits works on whole bytes
