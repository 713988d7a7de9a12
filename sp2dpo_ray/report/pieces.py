"""The pairs as the page loads them: an index of numbers, and texts in pieces.

In: the schedule's columns, the pairs, their measures. Out: `pairs/index.js` and `pairs/NNNN.js`.
Invariant: each file is one call of a function of the page with JSON in it, all in ASCII; scripts
are what a page from a file may load, and text of pairs is never anything but a JSON string.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sp2dpo_ray.core.pairs import Pair
from sp2dpo_ray.core.schedule.columns import PREDICTED_COLUMN
from sp2dpo_ray.core.schedule.grid import Panel
from sp2dpo_ray.report.measures import Measures

FOLDER = "pairs"
PAIRS_A_PIECE = 200
HEAD = 140  # characters of a prompt in the index
OF_A_CALL = ("category", "magnitude", "confidence", "effective_gap", "beta")
Json = dict[str, Any]


def write_pieces(
    folder: Path,
    schedule: pa.Table,
    panel: Panel,
    pairs: Sequence[Pair],
    measures: Measures,
    listed: Mapping[str, str],
    languages: Mapping[str, str],
) -> None:
    """Write the index and the pieces into `folder`.

    schedule, pairs, measures: in the same order. listed: of the pairs of the audit list, the
    most urgent first, the names of the reasons. languages: code of each prompt.
    """
    folder.mkdir()
    index = _index(schedule, pairs, measures, listed, languages)
    _write(folder / "index.js", "index", index)
    for number, start in enumerate(range(0, len(pairs), PAIRS_A_PIECE)):
        calls = _calls(schedule.slice(start, PAIRS_A_PIECE), panel)
        rows = [
            [pair.prompt_text, pair.chosen, pair.rejected, said]
            for pair, said in zip(pairs[start : start + PAIRS_A_PIECE], calls, strict=True)
        ]
        _write(folder / f"{number:04d}.js", "piece", number, rows)


def _index(
    schedule: pa.Table,
    pairs: Sequence[Pair],
    measures: Measures,
    listed: Mapping[str, str],
    languages: Mapping[str, str],
) -> Json:
    """Columns of one number or short text a pair."""
    rank = {name: place for place, name in enumerate(listed)}
    ids = [pair.prompt_id for pair in pairs]
    return {
        "per_piece": PAIRS_A_PIECE,
        "id": ids,
        "head": [_head(pair) for pair in pairs],
        "category": schedule["category"].to_pylist(),
        "beta": _rounded(measures.beta),
        "magnitude": _rounded(measures.magnitude),
        "confidence": _rounded(measures.confidence),
        "teacher_std": _rounded(measures.teacher_std),
        "wording": _rounded(measures.wording),
        "chosen_words": measures.chosen_words.tolist(),
        "rejected_words": measures.rejected_words.tolist(),
        "overlap": _rounded(measures.overlap),
        "score_gap": None if measures.score_gap is None else _rounded(measures.score_gap),
        "language": [languages[name] for name in ids],
        "predicted": [int(told) for told in schedule[PREDICTED_COLUMN].to_pylist()],
        "why": [listed.get(name, "") for name in ids],
        "urgency": [rank.get(name, -1) for name in ids],
    }


def _head(pair: Pair) -> str:
    """The beginning of what was asked last."""
    text = " ".join(pair.prompt[-1]["content"].split()) if pair.prompt else ""
    return text if len(text) <= HEAD else text[: HEAD - 1] + "\u2026"


def _rounded(values: np.ndarray) -> list[float | None]:
    # NaN is no JSON
    return [None if np.isnan(value) else round(float(value), 4) for value in values]


def _calls(schedule: pa.Table, panel: Panel) -> list[list[list[Any]]]:
    """Of each pair every call: teacher, prompt, category, magnitude, confidence, gap, beta."""
    columns = [
        (teacher, variant, [schedule[f"{what}_{teacher}_{variant}"].to_pylist()
                            for what in OF_A_CALL])
        for _, _, teacher, variant in panel.calls
    ]  # fmt: skip
    return [
        [
            [teacher, variant, *(_short(values[row]) for values in told)]
            for teacher, variant, told in columns
        ]
        for row in range(schedule.num_rows)
    ]


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return None if np.isnan(value) else round(value, 4)
    return value


def _write(path: Path, function: str, *arguments: Any) -> None:
    told = ",".join(
        json.dumps(value, separators=(",", ":"), allow_nan=False) for value in arguments
    )
    path.write_text(f"sp2dpo.{function}({told})\n", encoding="ascii")
