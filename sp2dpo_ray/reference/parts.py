"""Blocks through a pool of actors that hold a model; what is done is kept until the whole is
published.

In: blocks of rows with a `prompt_id`. Out: what the actors make of them, after an interruption too.
Invariant: a part is whole or not there, and belongs to one computation: its folder's name is the
key.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.data import ActorPoolStrategy

from sp2dpo_ray.core.hashing import sha256_hex

BLOCK = "block"


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


class _OneBlock:
    """An actor that gets its blocks packed."""

    def __init__(self, actor: type, spec: Any) -> None:
        self._work = actor(spec)

    def __call__(self, row: pa.Table) -> pa.Table:
        (packed,) = row[BLOCK].to_pylist()
        made: pa.Table = self._work(pa.ipc.open_stream(packed).read_all())
        return made


def _packed(block: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, block.schema) as writer:
        writer.write_table(block)
    return bytes(sink.getvalue())


def through_actors(
    blocks: list[pa.Table],
    actor: type,
    spec: Any,
    parts: Parts,
    *,
    actors: int,
    gpus_per_actor: float,
    progress: Callable[[int, str], None],
) -> list[pa.Table]:
    """What `actor(spec)` makes of each block that the parts do not hold yet; each is kept there.

    Blocks are cut by the caller and not by Ray tasks: actors may hold every core of a small
    cluster, and a task would then wait for them for ever. progress(rows, note) is told as blocks
    are done.
    """
    if not blocks:
        return []
    # a block travels as one row: Ray wants a number of rows a batch where a GPU is asked for, and
    # would put rows of several blocks into one
    named = type(actor.__name__, (_OneBlock,), {})  # Ray shows the class: the dashboard tells which
    rows = ray.data.from_items(
        [{BLOCK: _packed(block)} for block in blocks], override_num_blocks=len(blocks)
    ).map_batches(
        named,
        fn_constructor_args=(actor, spec),
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=1,
        num_gpus=gpus_per_actor,
        compute=ActorPoolStrategy(size=min(actors, len(blocks))),
    )
    done = []
    for block in rows.iter_batches(batch_size=None, batch_format="pyarrow"):
        parts.keep(block)
        done.append(block)
        progress(block.num_rows, "")
    return done
