"""Masking what should not leave the machine: e-mail addresses, phone numbers, keys.

In: a pair. Out: the pair with marks in place of what was found, and how much that was. It is a net
with known holes (names, addresses, account numbers pass), not a promise of anonymity. Invariant:
masking a masked text changes nothing.
"""

from __future__ import annotations

import re
from collections import Counter

from sp2dpo_ray.core.pairs import Pair

# a key: a known prefix, or a word of 32 and more characters that mixes letters and digits
KEY = r"""
    \b(?:sk|pk|rk|ghp|gho|ghs|github_pat|glpat|xox[abprs]|hf|AIza|AKIA|ASIA|ya29)[-_.]?[A-Za-z0-9_\-.]{11,}[A-Za-z0-9]
  | -----BEGIN\ [A-Z ]*PRIVATE\ KEY-----.*?-----END\ [A-Z ]*PRIVATE\ KEY-----
  | \beyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]+
  | \b(?=[A-Za-z0-9]*\d)(?=[A-Za-z0-9]*[A-Za-z])[A-Za-z0-9]{32,}\b
"""
EMAIL = (
    r"\b[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){0,8}\.[A-Za-z]{2,24}\b"
)
# international with +, or national with brackets or at least two separators: 555-0199 alone, years,
# dates and prices are no numbers to call
PHONE = r"""
    (?<![\w+.-])\+\d{1,3}(?:[ .\-/]?\(?\d{1,4}\)?){2,5}(?![\w])
  | (?<![\w+.-])\(\d{2,5}\)[ .\-/]?\d{2,4}[ .\-/]\d{2,5}(?![\w])
  | (?<![\w+.-])\d{3}[ .\-]\d{3}[ .\-]\d{4}(?![\w])
  | (?<![\w+.-])0\d{2,4}[ \-/]\d{3,4}[ \-]?\d{3,4}(?![\w])
"""
RULES: dict[str, re.Pattern[str]] = {
    "key": re.compile(KEY, re.VERBOSE | re.DOTALL),
    "email": re.compile(EMAIL),
    "phone": re.compile(PHONE, re.VERBOSE),
}


def redact(text: str) -> tuple[str, Counter[str]]:
    """The text with `[EMAIL]`, `[PHONE]` and `[KEY]` in place of what was found, and the counts."""
    found: Counter[str] = Counter()
    for kind, pattern in RULES.items():
        text, count = pattern.subn(f"[{kind.upper()}]", text)
        if count:
            found[kind] += count
    return text, found


def redact_pair(pair: Pair) -> tuple[Pair, Counter[str]]:
    """A pair as teachers may see it; what the student trains on stays as it was."""
    found: Counter[str] = Counter()

    def clean(text: str) -> str:
        text, counts = redact(text)
        found.update(counts)
        return text

    prompt = [turn | {"content": clean(turn["content"])} for turn in pair.prompt]
    return Pair(pair.prompt_id, prompt, clean(pair.chosen), clean(pair.rejected)), found
