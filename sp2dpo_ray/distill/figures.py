"""What a predictor is worth, on pairs that neither trained nor calibrated it.

In: predictions and the panel's answers. Out: figures by name, tables by category. Invariant: every
error stands beside those of two trivial predictors, a constant and the length difference.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression

from sp2dpo_ray.core.schedule.agreement import spearman
from sp2dpo_ray.core.schedule.quality import rounded
from sp2dpo_ray.core.taxonomy import CATEGORIES
from sp2dpo_ray.distill.conformal import covered
from sp2dpo_ray.distill.predictions import UNFAMILIAR, Predictions
from sp2dpo_ray.distill.predictor import Split
from sp2dpo_ray.distill.targets import Targets
from sp2dpo_ray.distill.texts import Texts

BINS = 10
Floats = NDArray[np.float64]


def figures_of(
    found: Predictions, texts: Texts, targets: Targets, split: Split, width: float
) -> dict[str, Any]:
    """width: of the envelope, which turns an error of the gap into one of beta under Eq. 15."""
    truth = targets.gap[split.test]
    if not len(truth):
        return {"pairs": 0}
    longer = _length_difference(texts)
    x, y = longer[split.fit], targets.gap[split.fit]
    rising = bool(((x - x.mean()) * (y - y.mean())).sum() >= 0)
    by_length = IsotonicRegression(increasing=rising, out_of_bounds="clip").fit(x, y)
    constant = np.full(len(truth), np.median(y))
    told = {
        "": found.gap,
        "_constant": constant,
        "_length": by_length.predict(longer[split.test]),
    }
    answered = targets.categories[split.test].argmax(axis=1)
    shares = targets.categories[split.test]
    confidence = targets.confidence[split.test]
    figures = {
        "pairs": len(truth),
        **{f"mae{name}": width * _mae(gap, truth) for name, gap in told.items()},
        **{
            f"rmse{name}": width * float(np.sqrt(((gap - truth) ** 2).mean()))
            for name, gap in told.items()
        },
        "spearman": spearman(found.gap, truth),
        "spearman_length": spearman(told["_length"], truth),
        "coverage": covered(found.low, found.high, truth),
        "width": width * float(found.width.mean()),
        "category_accuracy": float((found.category == answered).mean()),
        "category_accuracy_constant": float((answered == _most(answered)).mean()),
        "category_log_loss": float(
            -(shares * np.log(np.maximum(found.shares, 1e-12))).sum(axis=1).mean()
        ),
        "confidence_brier": float(((found.confidence - confidence) ** 2).mean()),
        "unfamiliar": int((found.unknown > UNFAMILIAR).sum()),
        "by_category": _by_category(found, truth, answered, width),
        "reliability": _reliability(found.confidence, confidence),
    }
    return rounded(figures)


def skill(figures: dict[str, Any]) -> float:
    """Share of the constant's error that the predictor takes away; 0: it learned nothing."""
    if not figures.get("mae_constant"):
        return 0.0
    return 1 - float(figures["mae"]) / float(figures["mae_constant"])


def _mae(gap: Floats, truth: Floats) -> float:
    return float(np.abs(gap - truth).mean())


def _most(codes: NDArray[np.int64]) -> int:
    return int(np.bincount(codes).argmax())


def _length_difference(texts: Texts) -> Floats:
    chosen, rejected = (
        pc.utf8_length(column).to_numpy() for column in (texts.chosen, texts.rejected)
    )
    return chosen.astype(np.float64) - rejected


def _by_category(
    found: Predictions, truth: Floats, answered: NDArray[np.int64], width: float
) -> dict[str, Any]:
    """By the panel's category."""
    rows = {}
    for code, name in enumerate(CATEGORIES):
        here = answered == code
        if here.any():
            rows[str(name)] = {
                "pairs": int(here.sum()),
                "mae": width * _mae(found.gap[here], truth[here]),
                "coverage": covered(found.low[here], found.high[here], truth[here]),
                "width": width * float(found.width[here].mean()),
                "recall": float((found.category[here] == code).mean()),
            }
    return rows


def _reliability(told: Floats, truth: Floats) -> list[dict[str, float]]:
    """Predicted confidence beside the panel's, in equally wide bins."""
    place = np.minimum((told * BINS).astype(int), BINS - 1)
    return [
        {
            "from": b / BINS,
            "pairs": int((place == b).sum()),
            "predicted": float(told[place == b].mean()),
            "panel": float(truth[place == b].mean()),
        }
        for b in range(BINS)
        if (place == b).any()
    ]
