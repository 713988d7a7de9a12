"""The six categories of a semantic gap, their strict priority, and the vote among calls.

In: category names as teachers write them. Out: `Category`, or its code, the position in the
priority order of Eq. 25 (0 is Safety). Invariant: a lower code always wins a tie.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Category(StrEnum):
    """Dominant semantic difference of a pair (Eq. 24), in order of priority (Eq. 25)."""

    SAFETY = "Safety"
    FACTUALITY = "Factuality"
    INSTRUCTION = "Instruction"
    REASONING = "Reasoning"
    HELPFULNESS = "Helpfulness"
    STYLE = "Style"


Codes = NDArray[np.int8]  # of categories; -1: none
CATEGORIES: tuple[Category, ...] = tuple(Category)
CODE: dict[Category, int] = {category: code for code, category in enumerate(CATEGORIES)}

# Other names for the same six; the long names of the paper's section A.4 come first.
ALIASES: dict[str, Category] = {
    "harmlessness": Category.SAFETY,
    "safety / harmlessness": Category.SAFETY,
    "safety/harmlessness": Category.SAFETY,
    "truthfulness": Category.FACTUALITY,
    "factuality / truthfulness": Category.FACTUALITY,
    "factuality/truthfulness": Category.FACTUALITY,
    "factual": Category.FACTUALITY,
    "correctness": Category.FACTUALITY,
    "instruction following": Category.INSTRUCTION,
    "instruction-following": Category.INSTRUCTION,
    "instruction / constraint following": Category.INSTRUCTION,
    "instruction/constraint following": Category.INSTRUCTION,
    "constraint following": Category.INSTRUCTION,
    "instructions": Category.INSTRUCTION,
    "reasoning soundness": Category.REASONING,
    "logic": Category.REASONING,
    "helpful": Category.HELPFULNESS,
    "utility": Category.HELPFULNESS,
    "helpfulness / utility": Category.HELPFULNESS,
    "helpfulness/utility": Category.HELPFULNESS,
    "tone": Category.STYLE,
    "style / tone": Category.STYLE,
    "style/tone": Category.STYLE,
    **{category.lower(): category for category in CATEGORIES},
}


def parse_category(name: str) -> Category | None:
    """The category that `name` means, or None if it is not one of the known names."""
    return ALIASES.get(" ".join(name.split()).lower())


def majority_vote(codes: NDArray[Any]) -> tuple[Codes, NDArray[np.bool_]]:
    """Majority with ties broken by priority (MajPriVote, Eq. 32).

    codes: (N, V) category codes of V votes. Returns the winners (N,) and whether two or more
    categories shared the top count (N,), that is, whether the priority had to decide.
    """
    counts = (codes[:, :, None] == np.arange(len(CATEGORIES))).sum(axis=1)
    top = counts.max(axis=1, keepdims=True)
    winners = counts.argmax(axis=1)  # argmax takes the first, the one of highest priority
    return winners.astype(np.int8), (counts == top).sum(axis=1) > 1
