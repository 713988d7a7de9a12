"""MT-Bench: two turns a question, a grade from 1 to 10 for each (Eq. 59).

In: questions, reference answers, a model's answers, the judge's texts. Out: the mean grade, by
category and turn too. Invariant: a turn whose grade cannot be read is counted, and left out of no
figure silently.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from sp2dpo_ray.core.prompts import Message
from sp2dpo_ray.errors import DataError
from sp2dpo_ray.evaluate.items import (
    Answers,
    Item,
    Result,
    filled,
    judge_prompt,
    mean_of,
    read_lines,
    stripped,
    whole,
)
from sp2dpo_ray.evaluate.judging import Question, Verdict

WITH_REFERENCE = ("math", "reasoning", "coding")
TEMPERATURE, MAX_TOKENS = 0.0, 2048
GRADE = re.compile(r"\D{0,12}?(10|[1-9])(?:\.0+)?(?:\s*/\s*10)?\W*")
DOUBLE = re.compile(r"\[\[(\d+(?:\.\d+)?)\]\]")


def read_items(questions: Path, references: Path | None) -> list[Item]:
    """The questions; those of WITH_REFERENCE categories must have a reference answer."""
    known = {}
    for row in read_lines(references) if references else []:
        known[str(row["question_id"])] = tuple(row["choices"][0]["turns"])
    items = []
    for row in read_lines(questions):
        name, category = str(row["question_id"]), str(row["category"])
        reference = known.get(name)
        if category in WITH_REFERENCE and reference is None:
            raise DataError(
                f"{questions}: question {name} ({category}) is graded with a reference answer, and "
                "evaluate.mt_bench.references holds none"
            )
        kept = {"category": category, "reference": reference}
        items.append(Item(name, tuple(row["turns"]), known=kept))
    return items


def questions_of(items: Sequence[Item], answers: Answers, folder: Path | None) -> list[Question]:
    """Two calls a question: one for each turn, the second with the first exchange before it."""
    whole(items, answers, "mt_bench")
    system = judge_prompt("mt_bench", folder)
    found = []
    for item in items:
        given = [stripped(text) for text in answers[item.id]]
        reference = item.known["reference"] or ("", "")
        with_reference = "_reference" if item.known["category"] in WITH_REFERENCE else ""
        texts = {"question": item.turns[0], "answer": given[0], "reference": reference[0]}
        for turn, kind in enumerate(("first", "second")[: len(item.turns)]):
            if turn:
                texts |= {"question_2": item.turns[1], "answer_2": given[1],
                          "reference_2": reference[1]}  # fmt: skip
            user = filled(judge_prompt(f"mt_bench_{kind}{with_reference}", folder), **texts)
            found.append(Question(item.id, kind, _messages(system, user)))
    return found


def _messages(system: str, user: str) -> list[Message]:
    return [{"role": "system", "content": system}, {"role": "user", "content": user}]


def read_grade(text: str) -> float | None:
    """The grade on the last line, or in double brackets; None where there is none from 1 to 10."""
    if bracketed := DOUBLE.findall(text):
        grade = float(bracketed[-1])
        return grade if 1 <= grade <= 10 else None
    lines = [line for line in text.strip().splitlines() if line.strip()]
    match = GRADE.fullmatch(lines[-1].strip()) if lines else None
    return float(match[1]) if match else None


def score(items: Sequence[Item], verdicts: Mapping[tuple[str, str], Verdict]) -> Result:
    """Eq. 59 over the turns that have a grade; verdicts by (item, kind)."""
    grades: dict[tuple[str, str], float | None] = {}
    notes = {"not_answered": 0, "not_read": 0}
    for place, verdict in verdicts.items():
        grade = read_grade(verdict.text) if verdict.answered else None
        grades[place] = grade
        if grade is None:
            notes["not_read" if verdict.answered else "not_answered"] += 1
    categories = {item.id: item.known["category"] for item in items}

    def mean(keep: object = None, turn: str | None = None) -> float | None:
        return mean_of(
            grade
            for (item, kind), grade in grades.items()
            if keep in (None, categories[item]) and turn in (None, kind)
        )

    figures = {
        "score": mean(),
        "first_turn": mean(turn="first"),
        "second_turn": mean(turn="second"),
    }
    figures |= {f"score_{name}": mean(name) for name in sorted(set(categories.values()))}
    values: dict[str, float | None] = {}
    rows = []
    for item in items:
        own = [grades.get((item.id, kind)) for kind in ("first", "second")[: len(item.turns)]]
        values[item.id] = mean_of(own)
        rows.append({"item": item.id, "category": categories[item.id], "grades": own})
    return Result(figures, values, notes, rows)
