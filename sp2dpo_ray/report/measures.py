"""What can be measured of each pair: its texts, its annotations, and how they go together.

In: the schedule's columns and the pairs. Out: arrays, one number a pair, in the schedule's order.
Invariant: nothing here depends on which pairs stand beside a pair, but for the correlations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sp2dpo_ray.core.pairs import Pair
from sp2dpo_ray.core.schedule.agreement import spearman
from sp2dpo_ray.core.schedule.columns import DEFAULT_BETA
from sp2dpo_ray.core.schedule.grid import Panel

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Measures:
    """Each (N,).

    beta: the default schedule's (Eq. 18). magnitude, confidence, gap: means over the pair's calls.
    teacher_std: of beta among teachers (Eq. 37). wording: median absolute deviation of the gap
    among a teacher's prompts, the largest over teachers (Eq. 36). chosen_words, rejected_words:
    split at white space. overlap: the words that both responses have among those that either has
    (Jaccard), upper case or lower. score_gap: score of the chosen response less the rejected one's;
    None where the data has none.
    """

    beta: Floats
    magnitude: Floats
    confidence: Floats
    gap: Floats
    teacher_std: Floats
    wording: Floats
    chosen_words: NDArray[np.int64]
    rejected_words: NDArray[np.int64]
    overlap: Floats
    score_gap: Floats | None

    @property
    def longer(self) -> NDArray[np.int64]:
        """By how many words the chosen response is longer; (N,)."""
        return self.chosen_words - self.rejected_words


def measure(
    schedule: pa.Table, panel: Panel, pairs: Sequence[Pair], score_gap: Floats | None
) -> Measures:
    """schedule: all columns of `load_schedule`. pairs, score_gap: in the schedule's order."""

    def mean(what: str) -> Floats:
        calls = [schedule[f"{what}_{t}_{v}"].to_numpy() for _, _, t, v in panel.calls]
        return np.asarray(np.nanmean(calls, axis=0))  # NaN: a call that was skipped on purpose

    words = [(pair.chosen.lower().split(), pair.rejected.lower().split()) for pair in pairs]
    return Measures(
        schedule[DEFAULT_BETA].to_numpy(),
        mean("magnitude"),
        mean("confidence"),
        mean("effective_gap"),
        schedule["teacher_std"].to_numpy(),
        np.max([schedule[f"prompt_disagreement_{t}"].to_numpy() for t in panel.teachers], axis=0),
        np.array([len(chosen) for chosen, _ in words], np.int64),
        np.array([len(rejected) for _, rejected in words], np.int64),
        np.array([_jaccard(set(chosen), set(rejected)) for chosen, rejected in words]),
        score_gap,
    )


def _jaccard(one: set[str], other: set[str]) -> float:
    either = len(one | other)
    return len(one & other) / either if either else 1.0


def correlations(measures: Measures) -> tuple[list[str], Floats]:
    """Names, and Spearman's rank correlation of every two measures; (M, M), NaN where one of them
    is the same for all pairs."""
    columns = {
        "beta": measures.beta,
        "magnitude": measures.magnitude,
        "confidence": measures.confidence,
        "teachers apart": measures.teacher_std,
        "prompts apart": measures.wording,
        "words of the chosen": measures.chosen_words.astype(float),
        "words of the rejected": measures.rejected_words.astype(float),
        "chosen longer by": measures.longer.astype(float),
        "overlap of words": measures.overlap,
    }
    if measures.score_gap is not None:
        columns["score gap"] = measures.score_gap
    values = list(columns.values())
    return list(columns), np.array([[spearman(a, b) for b in values] for a in values])
