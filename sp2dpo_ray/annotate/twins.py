"""Pairs whose texts stand in the data twice, under another id: one call serves both.

In: files of pairs. Out: the ids of the later ones. Invariant: 16 bytes a pair, whatever their
texts.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from sp2dpo_ray.annotate.table import pair_chunks
from sp2dpo_ray.core.pairs import Pair
from sp2dpo_ray.core.redaction import redact_pair

DIGEST_BYTES = 16


def find_twins(
    files: list[Path], *, redact: bool, left_out: frozenset[str] = frozenset()
) -> frozenset[str]:
    """Ids of the pairs whose texts (as teachers see them) stand earlier under another id.

    left_out: pairs that nobody is asked about; no call of theirs serves another.
    """
    digests = bytearray()
    for file in files:
        for pairs in pair_chunks(file):
            for pair in (pair for pair in pairs if pair.prompt_id not in left_out):
                digests += _digest(redact_pair(pair)[0] if redact else pair)
    every = np.frombuffer(bytes(digests), dtype=f"V{DIGEST_BYTES}")
    # a view as numbers: numpy sorts and compares those
    numbers = every.view(np.uint64).reshape(-1, 2)
    order = np.lexsort((np.arange(len(numbers)), numbers[:, 1], numbers[:, 0]))
    ranked = numbers[order]
    repeated = np.concatenate([[False], (ranked[1:] == ranked[:-1]).all(axis=1)])
    later = set(order[repeated].tolist()) if len(numbers) else set()
    if not later:
        return frozenset()
    every_id = (
        name for file in files for name in pq.read_table(file, columns=["prompt_id"])[0].to_pylist()
    )
    ids = [name for name in every_id if name not in left_out]
    return frozenset(ids[place] for place in later)


def _digest(pair: Pair) -> bytes:
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    turns = (text for turn in pair.prompt for text in (turn["role"], turn["content"]))
    for text in (*turns, "\0", pair.chosen, pair.rejected):
        part = text.encode("utf-8", "surrogatepass")
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.digest()
