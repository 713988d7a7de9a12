"""Stage `prepare`: read, clean and split the pairs.

In: the data set that `data` names. Out: `pairs/` with train, eval and excluded tables. Invariant:
the key covers the bytes of the source, so a changed file is seen.
"""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pyarrow as pa

from sp2dpo_ray.core.artifact import Draft
from sp2dpo_ray.core.files import EVAL, EXCLUDED, PAIRS_TABLE, TRAIN
from sp2dpo_ray.core.hashing import sha256_file, sha256_hex
from sp2dpo_ray.core.languages import COLUMN, languages_of
from sp2dpo_ray.core.prepare import prepare as prepare_pairs
from sp2dpo_ray.core.sources import read_source
from sp2dpo_ray.run import Run, Summary


def prepare(run: Run) -> Summary:
    """Read, clean and split the pairs."""
    data = run.config.data
    settings = {
        "data": data.model_dump(mode="json"),
        "content": {
            source: _content(source) for source in (data.source, data.eval_source) if source
        },
    }

    def make(draft: Draft) -> None:
        start = time.perf_counter()
        source = read_source(data.source, split=data.split, revision=data.revision)
        held_out = None
        if data.eval_source:
            held_out = read_source(
                data.eval_source,
                split=data.eval_split or data.split,
                revision=data.eval_revision or data.revision,
            )
        prepared = prepare_pairs(
            source,
            eval_source=held_out,
            eval_fraction=data.eval_fraction,
            limit=data.limit,
            eval_limit=data.eval_limit,
        )
        train, evaluation = _with_language(prepared.train), _with_language(prepared.evaluation)
        draft.write_table(PAIRS_TABLE.format(split=TRAIN), train)
        draft.write_table(PAIRS_TABLE.format(split=EVAL), evaluation)
        draft.write_table(EXCLUDED, prepared.excluded)
        told = Counter(train[COLUMN].to_pylist()).most_common()
        draft.summary |= prepared.counts | {
            "languages": {str(name): count for name, count in told},
            "seconds": time.perf_counter() - start,
        }

    return run.publish_once(run.path("pairs"), run.provenance("prepare", settings, {}), make)


def _with_language(pairs: pa.Table) -> pa.Table:
    """The language of each prompt, unless the source tells it."""
    if COLUMN in pairs.column_names:
        return pairs
    texts = [" ".join(turn["content"] for turn in turns) for turns in pairs["prompt"].to_pylist()]
    return pairs.append_column(COLUMN, pa.array(languages_of(texts), pa.string()))


def _content(source: str) -> str | None:
    """Hash of a source's bytes, so that a changed file is seen; None for a pinned hub id."""
    path = Path(source).expanduser()
    if path.is_dir():
        return sha256_hex({file.name: sha256_file(file) for file in sorted(path.iterdir())
                           if file.is_file()})  # fmt: skip
    return sha256_file(path) if path.is_file() else None
