"""What a person said of the audit list: reading the sheet, and how far teachers agree with it.

In: the sheet that `audit` wrote, filled in. Out: verdicts, agreement with intervals, weights.
Invariant: a row that cannot be understood is refused with its number; an empty verdict is none.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from pathlib import Path
from statistics import NormalDist
from typing import Any

from sp2dpo_ray.core.schedule.audit import OF_CATEGORY, SAMPLE, UNSURE
from sp2dpo_ray.core.schedule.columns import ENSEMBLE
from sp2dpo_ray.core.schedule.grid import PREDICTED_COLUMN
from sp2dpo_ray.core.taxonomy import parse_category
from sp2dpo_ray.errors import DataError

Json = dict[str, Any]
VERDICTS = ("chosen", "rejected", "tie")
NEEDED = ("prompt_id", "verdict")
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet takes for a formula
ENOUGH = 30  # judged pairs of the fair sample, to leave the listed ones out
DELIMITERS = ",;\t"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A person's word: which response is better, and the category if one was given."""

    prompt_id: str
    verdict: str
    category: str | None
    note: str


def write_sheet(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write the sheet for people: texts that a spreadsheet would run are made harmless."""
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for row in rows:
            writer.writerow([_harmless(value) for value in row])


def _harmless(value: Any) -> Any:
    return "'" + value if isinstance(value, str) and value.startswith(FORMULA) else value


def read_verdicts(path: Path) -> list[Verdict]:
    """The filled-in rows of a sheet, comma, semicolon or tab separated.

    Raises DataError that names the row for a verdict or category that is not known, and for a pair
    that was judged twice.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        head = file.readline()
        file.seek(0)
        delimiter = max(DELIMITERS, key=head.count)
        csv.field_size_limit(1 << 27)  # a response may be long
        reader = csv.DictReader(file, delimiter=delimiter)
        missing = [name for name in NEEDED if name not in (reader.fieldnames or ())]
        if missing:
            raise DataError(f"{path}: column {missing[0]!r} is missing, found {reader.fieldnames}")
        found = [
            verdict
            for number, row in enumerate(reader, 2)
            if (verdict := _verdict(f"{path}: row {number}", row))
        ]
    twice = [name for name, n in Counter(v.prompt_id for v in found).items() if n > 1]
    if twice:
        raise DataError(f"{path}: pair {twice[0]} is judged twice")
    return found


def _verdict(where: str, row: dict[str, str | None]) -> Verdict | None:
    text = (row["verdict"] or "").strip().lower()
    if not text:
        return None
    if text not in VERDICTS:
        raise DataError(f"{where}: verdict {text!r} must be one of {VERDICTS}, or empty")
    name = (row.get("true_category") or "").strip()
    category = parse_category(name) if name else None
    if name and category is None:
        raise DataError(f"{where}: true_category {name!r} is none of the six")
    prompt_id = (row["prompt_id"] or "").removeprefix("'")
    return Verdict(
        prompt_id, text, None if category is None else str(category), row.get("note") or ""
    )


@dataclass(frozen=True, slots=True)
class Judged:
    """A verdict, the pair's row of the list, and for how many pairs it speaks."""

    verdict: Verdict
    row: Json
    weight: float = 1.0

    @property
    def right(self) -> bool:
        return self.verdict.verdict == "chosen"


def share_of(rows: Sequence[Judged], hit: Callable[[Judged], bool]) -> Json:
    """The weighted share of the rows that `hit`, and its Wilson interval; nulls where there are no
    rows. Unequal weights count as so many equal ones: (sum w)^2 / sum w^2 (Kish)."""
    if not rows:
        return {"share": None, "low": None, "high": None, "pairs": 0}
    total = sum(each.weight for each in rows)
    count = total * total / sum(each.weight**2 for each in rows)
    share = sum(each.weight for each in rows if hit(each)) / total
    return wilson(share * count, count) | {"pairs": len(rows)}


def wilson(hits: float, count: float, level: float = 0.95) -> Json:
    """A share and its Wilson score interval."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, spread = hits / count, z * z / count
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * sqrt(share * (1 - share) / count + spread / (4 * count))
    low = 0.0 if hits == 0 else max(centre - half, 0.0)
    high = 1.0 if hits == count else min(centre + half, 1.0)
    return {"share": share, "low": low, "high": high, "pairs": count}


def agreement(verdicts: list[Verdict], listed: list[Json], teachers: Sequence[str]) -> Json:
    """How far labels and teachers agree with the verdicts.

    listed: rows of the audit list. A teacher agrees on the order where its median confidence is at
    least one half exactly if the person found the chosen response better; on the category where
    the person named one. Brier: mean squared error of the confidence, as a probability that the
    person finds the chosen response better; 0.25 is a coin. Weights: (agreements + 1) / (pairs +
    2) on the fair sample, or on all judged pairs where the sample has fewer than 30. The sample has
    as many pairs of a rare category as of a frequent one, so each speaks for its category's share
    of the schedule. Of teachers only pairs tell that they were asked about.
    """
    rows = {row["prompt_id"]: row for row in listed}
    unknown = [v.prompt_id for v in verdicts if v.prompt_id not in rows]
    if unknown:
        raise DataError(
            f"pair {unknown[0]} is not in this run's audit list ({len(unknown)} such rows); "
            "run: sp2dpo audit"
        )
    judged = [Judged(v, rows[v.prompt_id]) for v in verdicts]
    fair = _sampled(judged)
    basis = fair if len(fair) >= ENOUGH else judged
    by_reason: dict[str, list[Judged]] = {}
    by_category: dict[str, list[Judged]] = {}
    for each in judged:
        by_category.setdefault(each.row["category"], []).append(each)
        for name in each.row["why"].split():
            by_reason.setdefault(name, []).append(each)
    by_reason |= {SAMPLE: fair} if fair else {}
    asked = _asked(basis)
    found = {name: _teacher(asked, name) for name in teachers}
    return {
        "judged": len(judged),
        "verdicts": dict(Counter(each.verdict.verdict for each in judged)),
        "labels_right": _labels(basis),
        "labels_right_by_category": {n: _labels(part) for n, part in sorted(by_category.items())},
        "labels_right_by_reason": {n: _labels(part) for n, part in sorted(by_reason.items())},
        "basis": "sample" if basis is fair else "all judged pairs",
        "basis_pairs": len(basis),
        "told_by_predictor": len(basis) - len(asked),
        "teachers": found,
        "teachers_by_category": {
            name: {t: _teacher(_asked(part), t)["order"] for t in teachers}
            for name, part in sorted(by_category.items())
        },
        "teacher_weights": {
            name: round(((row["order"]["share"] or 0.0) * len(asked) + 1) / (len(asked) + 2), 6)
            for name, row in found.items()
        },
    }


def _sampled(judged: list[Judged]) -> list[Judged]:
    """The fair sample, each row with the pairs of its category that it speaks for."""
    fair = [each for each in judged if SAMPLE in each.row["why"].split()]
    count = Counter(each.row["category"] for each in fair)
    return [
        replace(each, weight=each.row[OF_CATEGORY] / count[each.row["category"]]) for each in fair
    ]


def _asked(judged: list[Judged]) -> list[Judged]:
    return [each for each in judged if not each.row[PREDICTED_COLUMN]]


def _labels(judged: list[Judged]) -> Json:
    return share_of(judged, lambda each: each.right)


def _teacher(judged: list[Judged], teacher: str) -> Json:
    confidence, category = (f"{what}_{teacher}_{ENSEMBLE}" for what in ("confidence", "category"))
    named = [each for each in judged if each.verdict.category is not None]
    errors = [each.weight * (each.row[confidence] - each.right) ** 2 for each in judged]
    return {
        "order": share_of(judged, lambda each: (each.row[confidence] >= UNSURE) == each.right),
        "brier": sum(errors) / sum(each.weight for each in judged) if errors else None,
        "category": share_of(named, lambda each: each.row[category] == each.verdict.category),
    }
