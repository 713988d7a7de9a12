"""The panel's agreement by the prompts' language: a rubric in one may serve others less.

In: the schedule's columns, the language of each pair. Out: a row a language. Invariant: pairs that
a predictor told are left out, since the same number in every call is no agreement.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from sp2dpo_ray.core.schedule.agreement import nominal_alpha, spearman, votes_by_category
from sp2dpo_ray.core.schedule.columns import DEFAULT_BETA, ENSEMBLE, PREDICTED_COLUMN
from sp2dpo_ray.core.schedule.grid import Panel
from sp2dpo_ray.core.taxonomy import CATEGORIES

LEAST = 5  # pairs without which a language has no agreement


def by_language(
    schedule: pa.Table, panel: Panel, languages: Mapping[str, str]
) -> list[dict[str, Any]]:
    """pairs, mean beta and its deviation among teachers, agreement in gap (mean Spearman over the
    pairs of teachers) and in category (Krippendorff's alpha); the most frequent language first."""
    table = schedule.filter(pa.array(~np.array(schedule[PREDICTED_COLUMN].to_pylist(), bool)))
    here = np.array([languages[name] for name in table["prompt_id"].to_pylist()], dtype=object)
    gaps = [table[f"effective_gap_{name}_{ENSEMBLE}"].to_numpy() for name in panel.teachers]
    codes = {str(category): code for code, category in enumerate(CATEGORIES)}
    votes = votes_by_category(
        np.array(
            [
                [codes.get(value, -1) for value in table[f"category_{name}_{ENSEMBLE}"].to_pylist()]
                for name in panel.teachers
            ]
        ).reshape(len(panel.teachers), -1).T
    )  # fmt: skip
    beta, deviation = table[DEFAULT_BETA].to_numpy(), table["teacher_std"].to_numpy()
    rows = []
    for language in sorted(set(here), key=lambda name: (-int((here == name).sum()), name)):
        part = here == language
        ranks = [spearman(one[part], other[part]) for one, other in itertools.combinations(gaps, 2)]
        enough = int(part.sum()) >= LEAST
        rows.append(
            {
                "language": language,
                "pairs": int(part.sum()),
                "beta": float(beta[part].mean()),
                "teacher_std": float(deviation[part].mean()),
                "spearman": _known(float(np.mean(ranks))) if ranks and enough else None,
                "alpha": _known(nominal_alpha(votes[part])) if enough else None,
            }
        )
    return rows


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
