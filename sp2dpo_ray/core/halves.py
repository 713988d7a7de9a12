"""The two halves of the held-out pairs: one chooses, the other reports.

In: of each pair what it must not share with a pair of the other half: its prompt. Out: which pairs
choose. Invariant: drawn by what the pairs share, so the halves are the same for every arm, seed and
machine, whatever the order of rows, and pairs of one prompt are on one side.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sp2dpo_ray.core.hashing import sha256_hex, uniform_draws

HALVES_SEED = 0


def tuning_half(groups: Sequence[str]) -> NDArray[np.bool_]:
    """Which pairs choose: the groups with the smallest draws, as many as come nearest to half of
    the pairs; (N,)."""
    names, place, count = np.unique(np.array(groups, str), return_inverse=True, return_counts=True)
    draws = uniform_draws(names.tolist(), seed=HALVES_SEED, purpose="sweep-halves")
    order = np.argsort(draws, kind="stable")
    reached = np.concatenate([[0], np.cumsum(count[order])])
    taken = order[: int(np.argmin(np.abs(2 * reached - len(groups))))]
    return np.isin(place, taken)


def prompts_of(file: Path, ids: Sequence[str]) -> list[str]:
    """The hash of each pair's prompt. file: a table that `pairs/` stores."""
    table = pq.read_table(file, columns=["prompt_id", "prompt"])
    found = {
        name: sha256_hex(turns)
        for name, turns in zip(table["prompt_id"].to_pylist(), table["prompt"].to_pylist(),
                               strict=True)
    }  # fmt: skip
    return [found[name] for name in ids]
