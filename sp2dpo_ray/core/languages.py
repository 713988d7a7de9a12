"""The language of a prompt, so that a panel's agreement can be told apart by it.

In: texts. Out: ISO 639-1 codes, UNKNOWN where the text does not tell. Invariant: a text decides its
own code, whatever stands beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

COLUMN = "language"
UNKNOWN = "und"  # undetermined, as ISO 639 has it
NO_LANGUAGE = "zxx"  # what the model says of numbers and the like
LEAST = 0.3  # share of the probability that the first language must have
LETTERS = 600  # of a text that are looked at


def languages_of(texts: Sequence[str]) -> list[str]:
    """The code of each text, by py3langid's naive Bayes over byte n-grams."""
    identifier = _identifier()
    found = []
    for text in texts:
        code, share = identifier.classify(text[:LETTERS])
        found.append(str(code) if share >= LEAST and code != NO_LANGUAGE else UNKNOWN)
    return found


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
