"""A schedule joined to its pairs, as a Hugging Face data set folder that any trainer reads.

In: pairs, their betas, what the card says. Out: `data/*.parquet` and a README with the data card.
Invariant: a pair without a beta is not exported; texts are those of the pairs, unchanged.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sp2dpo_ray.core.artifact import ROWS_AT_ONCE
from sp2dpo_ray.core.hashing import sha256_file
from sp2dpo_ray.core.schedule.ensemble import Floats

SPLITS = {"train": "train", "eval": "test"}  # our names, and those of the hub
DATA = "data/{split}-{digest}.parquet"

HEAD = """---
configs:
- config_name: default
  data_files:
{files}
tags:
- preference
- dpo
- sp2dpo
---

> Columns: `prompt` (list of turns), `chosen` and `rejected` (one assistant turn each) as TRL's
> conversational preference format has them; `beta`, the temperature of the pair ({arm}); `category`
> and `teacher_std`, what the panel saw and how much it disagreed; `prompt_id`.

"""


def joined(pairs: pa.Table, betas: Floats, beside: pa.Table) -> pa.Table:
    """Pairs with their beta, and `category` and `teacher_std` from the diagnostics.

    pairs: columns prompt_id, prompt (turns), chosen, rejected (texts). betas: one a pair, in their
    order. beside: diagnostics keyed by prompt_id, which must hold every pair.
    """
    rows = pa.compute.index_in(pairs["prompt_id"], beside["prompt_id"].combine_chunks())
    return pa.table(
        {
            "prompt_id": pairs["prompt_id"],
            "prompt": pairs["prompt"],
            "chosen": _turn(pairs["chosen"]),
            "rejected": _turn(pairs["rejected"]),
            "beta": betas,
            "category": beside["category"].take(rows),
            "teacher_std": beside["teacher_std"].take(rows),
        }
    )


def _turn(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """Each text as a list of one assistant turn."""
    made = []
    for chunk in texts.chunks:
        roles = pa.array(["assistant"] * len(chunk), pa.string())
        turns = pa.StructArray.from_arrays([roles, chunk], names=["role", "content"])
        offsets = pa.array(np.arange(len(chunk) + 1, dtype=np.int32))
        made.append(pa.ListArray.from_arrays(offsets, turns))
    kind = pa.list_(pa.struct([("role", pa.string()), ("content", texts.type)]))
    return pa.chunked_array(made, kind)


def write_dataset(folder: Path, tables: dict[str, pa.Table], card: str, arm: str) -> None:
    """Write the tables by split, and the README; empty splits are left out."""
    (folder / "data").mkdir()
    files = []
    for split, table in tables.items():
        if not table.num_rows:
            continue
        draft = folder / "data" / split
        pq.write_table(table, draft, compression="zstd", row_group_size=ROWS_AT_ONCE)
        # named by its bytes: `datasets` knows a folder by the names of its files, and would give
        # out the betas of an earlier export from its cache
        name = DATA.format(split=SPLITS[split], digest=sha256_file(draft)[:12])
        draft.rename(folder / name)
        files.append(f"  - split: {SPLITS[split]}\n    path: {name}")
    text = HEAD.format(files="\n".join(files), arm=arm) + card
    (folder / "README.md").write_text(text, encoding="utf-8")
