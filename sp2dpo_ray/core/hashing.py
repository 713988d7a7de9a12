"""Content hashes: the one place that says how values become bytes.

Everything that must be stable (ids, call keys, stage keys, random draws) is a function of
canonical JSON, so that neither row order, nor Python's hash seed, nor the machine matters.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces; NaN is refused."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def sha256_hex(value: Any) -> str:
    """SHA-256 of the canonical JSON of `value`."""
    # surrogatepass: a lone surrogate in somebody's text is data too, and must not stop a run
    return hashlib.sha256(canonical_json(value).encode("utf-8", "surrogatepass")).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_hashed: dict[tuple[str, int, int, int], str] = {}


def sha256_once(path: Path) -> str:
    """The hash of a file. One that this process has hashed, and whose inode, size and time of
    change are the same, is not read again: a sweep looks at every arm's weights many times."""
    state = path.stat()
    mark = (str(path), state.st_ino, state.st_size, state.st_ctime_ns)
    if mark not in _hashed:
        _hashed[mark] = sha256_file(path)
    return _hashed[mark]


def uniform_draws(ids: Iterable[str], *, seed: int, purpose: str) -> NDArray[np.float64]:
    """One number in [0, 1) for each id, drawn from the id itself: row order has no influence."""
    prefix = f"{purpose}:{seed}:".encode()
    words = [
        int.from_bytes(
            hashlib.sha256(prefix + item.encode("utf-8", "surrogatepass")).digest()[:8], "big"
        )
        for item in ids
    ]
    # the upper 53 bits are what a float64 in [0, 1) can hold
    return np.array([word >> 11 for word in words], dtype=np.float64) / float(1 << 53)
