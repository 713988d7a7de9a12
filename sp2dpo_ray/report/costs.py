"""What the answers on record cost: Eq. 60's terms by teacher and by judge.

In: the annotations table, what `evaluate` left, prices. Out: rows. Invariant: tokens are those that
providers counted; a model without a price has no money, never none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from sp2dpo_ray.core.costs import Price, Usage


@dataclass(frozen=True, slots=True)
class CostRow:
    """answers: with tokens told. prompt_tokens, completion_tokens: of all of them. usd: None where
    no price is known."""

    role: str
    name: str
    answers: int
    prompt_tokens: int
    completion_tokens: int
    usd: float | None

    @property
    def prompt_mean(self) -> float:
        """T_in of Eq. 60."""
        return self.prompt_tokens / max(self.answers, 1)

    @property
    def completion_mean(self) -> float:
        """T_out of Eq. 60."""
        return self.completion_tokens / max(self.answers, 1)


def judge_costs(rows: Iterable[Mapping[str, Any]]) -> list[CostRow]:
    """rows: the comparison that `evaluate` left. One row a judge, over all students and
    benchmarks; an answer that two students share is counted for both."""
    sums: dict[str, CostRow] = {}
    for row in rows:
        if judge := row["judge"]:
            new = CostRow(
                "judge", judge["model"], judge["calls"], judge["prompt_tokens"],
                judge["completion_tokens"], judge["usd"],
            )  # fmt: skip
            old = sums.get(new.name)
            sums[new.name] = _sum(old, new) if old else new
    return list(sums.values())


def _sum(one: CostRow, two: CostRow) -> CostRow:
    usd = None if one.usd is None or two.usd is None else one.usd + two.usd
    return CostRow(
        one.role, one.name, one.answers + two.answers, one.prompt_tokens + two.prompt_tokens,
        one.completion_tokens + two.completion_tokens, usd,
    )  # fmt: skip


def annotator_costs(calls: pa.Table, prices: Mapping[str, Price | None]) -> list[CostRow]:
    """calls: columns teacher, key, prompt_tokens, completion_tokens. Pairs with the same texts
    share a call, which counts once. Teachers that tell no tokens (rules, scripts) have no row."""
    told = calls.filter(calls["prompt_tokens"].is_valid())
    once = told.group_by(["teacher", "key"]).aggregate(
        [("prompt_tokens", "max"), ("completion_tokens", "max")]
    )
    once = once.rename_columns(["teacher", "key", "prompt_tokens", "completion_tokens"])
    sums = once.group_by("teacher").aggregate(
        [("prompt_tokens", "count"), ("prompt_tokens", "sum"), ("completion_tokens", "sum")]
    )
    by_name = {row["teacher"]: row for row in sums.to_pylist()}
    rows = []
    for name, price in prices.items():
        if row := by_name.get(name):
            used = Usage(row["prompt_tokens_sum"], row["completion_tokens_sum"] or 0)
            usd = price.cost(used) if price else None
            count = row["prompt_tokens_count"]
            rows.append(
                CostRow("teacher", name, count, used.prompt_tokens, used.completion_tokens, usd)
            )
    return rows
