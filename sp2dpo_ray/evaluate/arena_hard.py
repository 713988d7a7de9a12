"""Arena-Hard-Auto v0.1: a model against a baseline, five verdicts, ties half (Eq. 58, Table 11).

In: questions, the baseline's answers, a model's, the judge's texts. Out: win rate, and how often
each label fell, from the model's side. Invariant: a verdict that cannot be read is counted and has
no part in the win rate.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from sp2dpo_ray.errors import DataError
from sp2dpo_ray.evaluate.items import (
    Answers,
    Item,
    Result,
    Row,
    filled,
    judge_prompt,
    mean_of,
    read_lines,
    stripped,
    swapped,
    whole,
)
from sp2dpo_ray.evaluate.judging import Question, Verdict

TEMPERATURE, MAX_TOKENS = 0.0, 4096
LABEL = re.compile(r"\[\[(A>>B|A>B|A=B|B>A|B>>A)\]\]")
VALUES = {"A>>B": 1.0, "A>B": 1.0, "A=B": 0.5, "B>A": 0.0, "B>>A": 0.0}  # for A, Table 11
MIRROR = {"A>>B": "B>>A", "A>B": "B>A", "A=B": "A=B", "B>A": "A>B", "B>>A": "A>>B"}
FIRST, SECOND = "model first", "baseline first"


def read_items(questions: Path, baseline: Path) -> list[Item]:
    """The questions with the baseline's answers, which may lie in another order."""
    known = {
        str(row["uid"]): row["messages"][-1]["content"]["answer"] for row in read_lines(baseline)
    }
    items = []
    for row in read_lines(questions):
        name = str(row["uid"])
        if name not in known:
            raise DataError(f"{baseline}: holds no answer to question {name}")
        items.append(Item(name, (row["prompt"],), known={"baseline": known[name]}))
    return items


def questions_of(
    items: Sequence[Item], answers: Answers, folder: Path | None, *, both: bool
) -> list[Question]:
    """One call an item, the model's side drawn by the question; or one for each side."""
    whole(items, answers, "arena_hard")
    system, user = (judge_prompt(name, folder) for name in ("arena_hard", "arena_hard_item"))
    first = swapped(items)
    found = []
    for item in items:
        pair = stripped(answers[item.id][0]), stripped(item.known["baseline"])
        kinds = (FIRST, SECOND) if both else (FIRST if first[item.id] else SECOND,)
        for kind in kinds:
            a, b = pair if kind == FIRST else pair[::-1]
            text = filled(user, question=item.turns[0], answer_a=a, answer_b=b)
            messages = [{"role": "system", "content": system}, {"role": "user", "content": text}]
            found.append(Question(item.id, kind, messages))
    return found


def read_label(text: str) -> str | None:
    """The one label of a text; None where there is none, or several that differ."""
    labels = set(LABEL.findall(text))
    return labels.pop() if len(labels) == 1 else None


def score(items: Sequence[Item], verdicts: Mapping[tuple[str, str], Verdict]) -> Result:
    """Win rate over the items that have a verdict; of both sides the mean. Verdicts by (item,
    side)."""
    by_item: dict[str, list[float]] = {item.id: [] for item in items}
    counts = dict.fromkeys(VALUES, 0)
    notes = {"not_answered": 0, "not_read": 0}
    rows: list[Row] = []
    for (item, side), verdict in verdicts.items():
        label = read_label(verdict.text) if verdict.answered else None
        if label is None:
            notes["not_read" if verdict.answered else "not_answered"] += 1
        else:
            own = label if side == FIRST else MIRROR[label]  # the model as A
            counts[own] += 1
            by_item[item].append(VALUES[own])
        rows.append({"item": item, "side": side, "label": label})
    values = {name: sum(v) / len(v) if v else None for name, v in by_item.items()}
    total = sum(counts.values())
    mean = mean_of(values.values())
    figures = {"win_rate": None if mean is None else 100 * mean, "judged": float(total)}
    figures |= {f"share {name.replace('A', 'model').replace('B', 'baseline')}": count / total
                for name, count in counts.items() if total}  # fmt: skip
    return Result(figures, values, notes, rows)
