"""What plain rules can read off a pair's text: the eyes of the offline teacher.

In: texts. Out: one signed number in [-1, 1] a category; positive where the winner is the better
one. Invariant: pure functions of the text; no model, no network, no knowledge of the pair's origin.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

from sp2dpo_ray.core.lines import is_json
from sp2dpo_ray.core.taxonomy import Category

WORD = re.compile(r"[a-z']+")
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
NAME = re.compile(r"(?<![.!?:\n] )(?<!^)\b[A-Z][a-z]+")
EQUATION = re.compile(
    r"(\d+(?:\.\d+)?)\s*([-+*/x])\s*(\d+(?:\.\d+)?)\s*(?:=|is|equals|gives|makes)\s*(-?\d+(?:\.\d+)?)"
)
COUNTS = {
    word: number
    for number, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
}

DANGER_TEXT = """
    weapon gun explosive poison bleach ammonia drunk drinking driving password hack steal
    stolen forge fake counterfeit drug drugs pills dose dosage overdose hurt kill suicide
    harm scam fraud stalk track spy secretly illegal police knife burn fire gas carbon
    electric wiring fever chest pain pregnant infant baby child teenager minor alcohol
    medication antibiotics blackmail threaten revenge address bully crypto loan invoice
    insurance chemical acid fumes ladder roof brakes tired starve diet fasting unlock
    someone's ex without knowing
"""
DANGER = frozenset(DANGER_TEXT.split())
CAUTION = re.compile(
    r"\b(can't help|cannot help|won't|please don't|do not|don't|never|instead|danger\w*|unsafe|"
    r"risk\w*|emergency|call|doctor|hospital|pharmacist|helpline|crisis|lawyer|police|report|"
    r"illegal|crime|consent|harm\w*|poison control|stop|warn\w*|safe\w*|professional|trusted|"
    r"scam)\b"
)
RECKLESS = re.compile(
    r"\b(just|sure|no need|nobody|no one|won't notice|don't worry|fine|easy|harmless|go ahead|"
    r"relax|overcautious|get used to|simply|quickly|keep quiet|ignore)\b"
)
VAGUE = re.compile(
    r"\b(depends?|various|many (?:ways|causes|options|things|people|factors)|in general|generally|"
    r"it is important|really|some people|whatever|whichever|eventually|etc|stuff|things|different|"
    r"try (?:your best|experimenting|things)|do some research|look online|good luck|nice|lovely)\b"
)
GUSH = re.compile(r"!|\b(absolutely|wonderful|amazing|truly|very|kindly|oh|such|so much|indeed)\b")


def words(text: str) -> list[str]:
    return WORD.findall(text.lower())


def overlap(one: str, other: str) -> float:
    """Jaccard similarity of the two texts' words, in [0, 1]."""
    a, b = set(words(one)), set(words(other))
    return len(a & b) / len(a | b) if a | b else 1.0


def safety(prompt: str, winner: str, loser: str) -> float:
    """Caution of the winner over the loser, where the request sounds dangerous at all."""
    stakes = len(DANGER & set(words(prompt)))
    if stakes == 0:
        return 0.0
    return _squash((_care(winner) - _care(loser)) * min(stakes, 3) / 3)


def _care(text: str) -> float:
    low = text.lower()
    return len(CAUTION.findall(low)) - len(RECKLESS.findall(low))


def factuality(prompt: str, winner: str, loser: str) -> float:
    """How far names and numbers differ; rules cannot know which are right, so never negative."""
    ours, theirs = _claims(winner), _claims(loser)
    if not ours or not theirs:
        return 0.0
    return 1 - len(ours & theirs) / len(ours | theirs)


def _claims(text: str) -> set[str]:
    return set(NUMBER.findall(text)) | set(NAME.findall(text))


def instruction(prompt: str, winner: str, loser: str) -> float:
    """Share of the checkable constraints of the prompt that only one of the two keeps."""
    checks = [check for make in CONSTRAINTS for check in make(prompt)]
    if not checks:
        return 0.0
    kept = [(check(winner), check(loser)) for check in checks]
    return sum(int(ours) - int(theirs) for ours, theirs in kept) / len(kept)


def reasoning(prompt: str, winner: str, loser: str) -> float:
    """Wrong equations in the loser less those in the winner, with steps as a small bonus."""
    wrong = _wrong_equations(loser) - _wrong_equations(winner)
    steps = _steps(winner) - _steps(loser)
    return _squash(wrong + 0.25 * steps)


def _wrong_equations(text: str) -> int:
    wrong = 0
    for left, operator, right, result in EQUATION.findall(text):
        a, b, c = float(left), float(right), float(result)
        if operator == "/" and b == 0:
            continue
        value = {"+": a + b, "-": a - b, "*": a * b, "x": a * b, "/": a / b if b else 0.0}[operator]
        wrong += abs(value - c) > 0.01 * max(1.0, abs(value))
    return wrong


def _steps(text: str) -> int:
    return len(re.findall(r"\b(so|because|since|therefore|then|which means|if)\b|=", text.lower()))


def helpfulness(prompt: str, winner: str, loser: str) -> float:
    """Concrete detail of the winner over the loser."""
    return _squash((_concrete(winner) - _concrete(loser)) / 2)


def _concrete(text: str) -> float:
    length = max(len(words(text)), 1)
    detail = len(NUMBER.findall(text)) + len(set(words(text))) / length * 4
    return detail - 1.5 * len(VAGUE.findall(text.lower()))


def style(prompt: str, winner: str, loser: str) -> float:
    """Gushing and padding in the loser over the winner."""
    shorter = (len(words(loser)) - len(words(winner))) / max(len(words(winner + loser)), 1)
    gush = len(GUSH.findall(loser.lower())) - len(GUSH.findall(winner.lower()))
    return _squash(0.4 * gush + shorter)


def _squash(value: float) -> float:
    return value / (1 + abs(value))


Check = Callable[[str], bool]


def _number(text: str) -> int:
    return int(text) if text.isdigit() else COUNTS[text]


def _count_constraints(prompt: str) -> list[Check]:
    units: dict[str, Callable[[str], int]] = {
        "word": lambda text: len(text.split()),
        "sentence": lambda text: len(re.findall(r"[.!?]+(?:\s|$)", text)),
        "bullet": lambda text: len(re.findall(r"^\s*[-*] ", text, re.M)),
        "step": lambda text: len(re.findall(r"^\s*\d+[.)] ", text, re.M)),
        "line": lambda text: len(text.strip().splitlines()),
    }
    pattern = rf"\b(\d+|{'|'.join(COUNTS)})[ -](?:\w+ )?(word|sentence|bullet|step|line)"
    found = re.findall(pattern, prompt.lower())
    return [partial(_counts_to, units[unit], _number(number)) for number, unit in found]


def _counts_to(count: Callable[[str], int], wanted: int, text: str) -> bool:
    return count(text) == wanted


def _form_constraints(prompt: str) -> list[Check]:
    low = prompt.lower()
    table: tuple[tuple[str, Check], ...] = (
        (r"lower ?case", lambda text: text == text.lower()),
        (r"(?:all|in) (?:upper ?case|capitals)", lambda text: text == text.upper()),
        (r"\bjson\b", is_json),
        (r"(?:no|without|avoid) (?:any |using )*commas?", lambda text: "," not in text),
        (r"(?:no|without|avoid) (?:any |using )*(?:digits|numerals)",
         lambda text: not re.search(r"\d", text)),
        (r"yes or no", lambda text: bool(re.match(r"(yes|no)\b", text.lower()))),
        (r"comma-separated", lambda text: "," in text and "\n" not in text.strip()),
        (r"\btable\b", lambda text: "|" in text),
    )  # fmt: skip
    return [check for pattern, check in table if re.search(pattern, low)]


def _word_constraints(prompt: str) -> list[Check]:
    low = prompt.lower()
    banned = re.findall(r"(?:without using|do not use|don't use|avoid) the words? ['\"]?(\w+)", low)
    wanted = re.findall(r"(?:include|use|contain|work in) the words? ['\"]?(\w+)", low)
    first = re.findall(r"(?:start|begin|starting|beginning) with (?:the word )?['\"](\w+)", low)
    return [
        *(lambda text, word=word: word not in words(text) for word in banned),
        *(lambda text, word=word: word in words(text) for word in set(wanted) - set(banned)),
        *(lambda text, word=word: words(text)[:1] == [word] for word in first),
    ]


CONSTRAINTS = (_count_constraints, _form_constraints, _word_constraints)

SIGNALS: dict[Category, Callable[[str, str, str], float]] = {
    Category.SAFETY: safety,
    Category.FACTUALITY: factuality,
    Category.INSTRUCTION: instruction,
    Category.REASONING: reasoning,
    Category.HELPFULNESS: helpfulness,
    Category.STYLE: style,
}
