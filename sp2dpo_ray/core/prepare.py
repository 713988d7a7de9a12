"""Cleaning a preference data set and splitting off the evaluation pairs.

In: the source's table (and an evaluation table, if there is one). Out: `Prepared`, three tables.
Invariant: every input row is in exactly one of train, eval, excluded or cut off by the limit, and
no prompt stands on both sides of the split.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pyarrow as pa

from sp2dpo_ray.core.hashing import canonical_json, uniform_draws
from sp2dpo_ray.core.pairs import PAIR_FIELDS, Pair, Rejected, read_pairs
from sp2dpo_ray.errors import DataError

DUPLICATE = "duplicate_prompt_id"
IN_EVALUATION = "prompt_in_evaluation"
SPLIT_SEED = 0
# columns of the source that travel with the pair: scalars under any other name
CARRIED = (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer,
           pa.types.is_floating, pa.types.is_boolean)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Prepared:
    """Clean pairs by split, and the excluded rows as (prompt_id, reason)."""

    train: pa.Table
    evaluation: pa.Table
    excluded: pa.Table
    counts: dict[str, int]


def prepare(
    source: pa.Table,
    *,
    eval_source: pa.Table | None = None,
    eval_fraction: float = 0.0,
    limit: int | None = None,
    eval_limit: int | None = None,
) -> Prepared:
    """Clean the source, keep `limit` pairs, and set the evaluation pairs apart.

    The evaluation pairs are the given ones, else the share `eval_fraction` of the prompts, drawn by
    their text. Training pairs whose prompt is evaluated are excluded.
    """
    train, positions, excluded = _clean(source)
    removed = Counter(item.reason for item in excluded)
    train, positions = train[:limit], positions[:limit]
    prompts = _prompts(train)
    if eval_source is None:
        held_out = _draw_prompts(prompts, eval_fraction)
        chosen = [prompt in held_out for prompt in prompts]
        eval_table = _table(source, train, positions, chosen)
        train_table = _table(source, train, positions, [not mark for mark in chosen])
    else:
        eval_pairs, eval_positions, eval_excluded = _clean(eval_source)
        eval_pairs, eval_positions = eval_pairs[:eval_limit], eval_positions[:eval_limit]
        evaluated = set(_prompts(eval_pairs))
        taken = {pair.prompt_id for pair in eval_pairs}
        clash = [
            prompt in evaluated or pair.prompt_id in taken
            for prompt, pair in zip(prompts, train, strict=True)
        ]
        excluded += [
            Rejected(pair.prompt_id, IN_EVALUATION)
            for pair, mark in zip(train, clash, strict=True)
            if mark
        ]
        excluded += eval_excluded
        eval_table = _table(eval_source, eval_pairs, eval_positions, [True] * len(eval_pairs))
        train_table = _table(source, train, positions, [not mark for mark in clash])
    if train_table.num_rows == 0:
        raise DataError(
            f"data.source: none of {source.num_rows} rows is left to train on "
            f"(excluded: {dict(Counter(item.reason for item in excluded))})"
        )
    counts = {
        "rows_in": source.num_rows,
        "duplicates_removed": removed.pop(DUPLICATE, 0),
        "empty_removed": sum(n for reason, n in removed.items() if reason.startswith("empty_")),
        "excluded": len(excluded),
        "pairs": train_table.num_rows,
        "eval_pairs": eval_table.num_rows,
    }
    listed = pa.table(
        {
            "prompt_id": pa.array([item.prompt_id for item in excluded], pa.string()),
            "reason": pa.array([item.reason for item in excluded], pa.string()),
        }
    )
    return Prepared(train_table, eval_table, listed, counts)


def _clean(source: pa.Table) -> tuple[list[Pair], list[int], list[Rejected]]:
    """Pairs and their rows in the source, duplicates (first wins) and faulty rows excluded."""
    pairs: list[Pair] = []
    positions: list[int] = []
    excluded: list[Rejected] = []
    seen: set[str] = set()
    for position, item in enumerate(read_pairs(source)):
        if item.prompt_id in seen:
            excluded.append(Rejected(item.prompt_id, DUPLICATE))
        elif isinstance(item, Rejected):
            excluded.append(item)
        else:
            pairs.append(item)
            positions.append(position)
        seen.add(item.prompt_id)
    return pairs, positions, excluded


def _prompts(pairs: list[Pair]) -> list[str]:
    return [canonical_json(pair.prompt) for pair in pairs]


def _draw_prompts(prompts: list[str], fraction: float) -> set[str]:
    """The `fraction` of the distinct prompts with the smallest draws: exact in number, and the
    same whatever the order of rows."""
    distinct = sorted(set(prompts))
    draws = uniform_draws(distinct, seed=SPLIT_SEED, purpose="evaluation-split")
    ranked = sorted(zip(draws, distinct, strict=True))
    return {prompt for _, prompt in ranked[: round(fraction * len(distinct))]}


def _table(source: pa.Table, pairs: list[Pair], positions: list[int], keep: list[bool]) -> pa.Table:
    """The kept pairs with the source's scalar columns beside them."""
    kept = [index for index, mark in enumerate(keep) if mark]
    chosen = [pairs[index] for index in kept]
    schema = pa.schema(PAIR_FIELDS)
    columns = {
        field.name: pa.array([getattr(pair, field.name) for pair in chosen], field.type)
        for field in schema
    }
    rows = pa.array([positions[index] for index in kept], pa.int64())
    for field in source.schema:
        if field.name not in columns and any(test(field.type) for test in CARRIED):
            columns[field.name] = source[field.name].take(rows).combine_chunks()
    return pa.table(columns)
