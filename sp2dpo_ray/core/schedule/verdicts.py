"""What a person said of the audit list: reading the sheet, and how far teachers agree with it.

In: the sheet that `audit` wrote, filled in. Out: verdicts, agreement with intervals, weights.
Invariant: a row that cannot be understood is refused with its number; an empty verdict is none.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from statistics import NormalDist
from typing import Any

from sp2dpo_ray.core.schedule.audit import SAMPLE, UNSURE
from sp2dpo_ray.core.schedule.columns import ENSEMBLE
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


def wilson(hits: int, count: int, level: float = 0.95) -> Json:
    """A share and its Wilson score interval; nulls where nothing was counted."""
    if not count:
        return {"share": None, "low": None, "high": None, "pairs": 0}
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
    2) on the fair sample, or on all judged pairs where the sample has fewer than 30.
    """
    rows = {row["prompt_id"]: row for row in listed}
    unknown = [v.prompt_id for v in verdicts if v.prompt_id not in rows]
    if unknown:
        raise DataError(
            f"pair {unknown[0]} is not in this run's audit list ({len(unknown)} such rows); "
            "run: sp2dpo audit"
        )
    judged = [(v, rows[v.prompt_id]) for v in verdicts]
    fair = [(v, row) for v, row in judged if SAMPLE in row["why"].split()]
    basis = fair if len(fair) >= ENOUGH else judged
    by_reason: dict[str, list[tuple[Verdict, Json]]] = {}
    by_category: dict[str, list[tuple[Verdict, Json]]] = {}
    for v, row in judged:
        by_category.setdefault(row["category"], []).append((v, row))
        for name in row["why"].split():
            by_reason.setdefault(name, []).append((v, row))
    found = {name: _teacher(basis, name) for name in teachers}
    return {
        "judged": len(judged),
        "verdicts": dict(Counter(v.verdict for v, _ in judged)),
        "labels_right": _labels(basis),
        "labels_right_by_category": {n: _labels(part) for n, part in sorted(by_category.items())},
        "labels_right_by_reason": {n: _labels(part) for n, part in sorted(by_reason.items())},
        "basis": "sample" if basis is fair else "all judged pairs",
        "basis_pairs": len(basis),
        "teachers": found,
        "teachers_by_category": {
            name: {t: _teacher(part, t)["order"] for t in teachers}
            for name, part in sorted(by_category.items())
        },
        "teacher_weights": {
            name: round((_hits(basis, name) + 1) / (len(basis) + 2), 6) for name in teachers
        },
    }


def _labels(judged: list[tuple[Verdict, Json]]) -> Json:
    return wilson(sum(v.verdict == "chosen" for v, _ in judged), len(judged))


def _hits(judged: list[tuple[Verdict, Json]], teacher: str) -> int:
    confidence = f"confidence_{teacher}_{ENSEMBLE}"
    return sum((row[confidence] >= UNSURE) == (v.verdict == "chosen") for v, row in judged)


def _teacher(judged: list[tuple[Verdict, Json]], teacher: str) -> Json:
    confidence = f"confidence_{teacher}_{ENSEMBLE}"
    named = [(v, row) for v, row in judged if v.category is not None]
    errors = [(row[confidence] - (v.verdict == "chosen")) ** 2 for v, row in judged]
    return {
        "order": wilson(_hits(judged, teacher), len(judged)),
        "brier": sum(errors) / len(errors) if errors else None,
        "category": wilson(
            sum(row[f"category_{teacher}_{ENSEMBLE}"] == v.category for v, row in named),
            len(named),
        ),
    }
