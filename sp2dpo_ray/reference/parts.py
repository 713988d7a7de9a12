"""Blocks of the reference that are done, kept until the whole is published.

In: finished blocks. Out: the same after an interruption. Invariant: a part is whole or not there,
and belongs to one reference: the folder's name is its key.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sp2dpo_ray.core.hashing import sha256_hex


class Parts:
    """Finished blocks in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def read(self) -> list[pa.Table]:
        return [pq.read_table(path) for path in sorted(self._folder.glob("*.parquet"))]

    def keep(self, block: pa.Table) -> None:
        """Write one block; its pairs name it, so that a repeated block replaces itself."""
        path = self._folder / f"{sha256_hex(block['prompt_id'].to_pylist())}.parquet"
        partial = path.with_suffix(".partial")
        pq.write_table(block, partial)
        os.replace(partial, path)

    def discard(self) -> None:
        shutil.rmtree(self._folder)
