"""What happened, and is it good: the answers that a reader wants first, each with its rule.

In: what the page shows. Out: cards. Invariant: a mark follows from the rule that the card states,
and a card that has nothing to say is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sp2dpo_ray.core.schedule.agreement import spearman
from sp2dpo_ray.core.schedule.columns import DEFAULT_BETA, ENSEMBLE, PREDICTED_COLUMN
from sp2dpo_ray.core.schedule.grid import Panel
from sp2dpo_ray.report.costs import CostRow

GOOD, LOOK, PLAIN = "good", "look", "plain"
MANY_LEFT_OUT = 0.05
TENTATIVE = 0.667  # of Krippendorff's alpha: below it he draws no conclusion
WEAK_ORDER = 0.3  # mean rank correlation of the teachers' betas
NEARLY_CONSTANT = 0.02  # between the 5 % and the 95 % quantile of beta
MANY_FLIPPED = 0.1
FEWEST_PAIRS = 20  # held out; of fewer no arm is called better or worse
TOO_FEW = "too few pairs"
LENGTH_CONTROLLED = "length_controlled_winrate"
Json = dict[str, Any]


def about(config: Json, panel: Panel, pairs: int, trained: int) -> str:
    """One sentence for somebody who was handed the file: what this is. config: the resolved one."""
    source = config["data"]["source"]
    if not config["data"].get("revision"):  # a file or a folder, whose place says nothing elsewhere
        source = source.rstrip("/").rpartition("/")[2]
    teachers, prompts = len(panel.teachers), len(panel.variants)
    return (
        f"{_number(pairs, 'preference pair')} of {source}, each described by "
        f"{_number(teachers, 'teacher')} under {_number(prompts, 'prompt')}; student "
        f"{config['student']['model']}; {_number(trained, 'trained arm')}."
    )


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


@dataclass(frozen=True, slots=True)
class Card:
    """One answer. mark: good, look (worth a look) or plain. link: where the page tells more."""

    title: str
    value: str
    detail: str
    mark: str
    link: str


def overview(
    schedule: pa.Table,
    panel: Panel,
    figures: Json,
    flipped: int,
    arms: list[Json],
    trained: int,
    judged: list[Json],
    costs: list[CostRow],
) -> list[Card]:
    """figures: the content of `diagnostics.json`. flipped: pairs whose label is likely wrong.
    arms, judged: rows of the comparisons; empty where there are none. trained: how many arms are,
    scored or not."""
    cards = [
        _pairs(figures),
        _spread(schedule),
        *_agreement(schedule, panel, figures),
        _labels(flipped, schedule.num_rows),
        _arms(arms, trained),
        *([_judged(judged)] if judged else []),
        _cost(costs),
    ]
    return cards


def _pairs(figures: Json) -> Card:
    count, out = figures["pairs"], figures["excluded"]
    share = out / max(count + out, 1)
    return Card(
        "Pairs with a beta",
        f"{count:,}",
        f"{out:,} left out for want of a whole set of annotations ({share:.1%}; "
        f"above {MANY_LEFT_OUT:.0%} is worth a look)",
        LOOK if share > MANY_LEFT_OUT else GOOD,
        "schedule",
    )


def _spread(schedule: pa.Table) -> Card:
    low, middle, high = np.quantile(schedule[DEFAULT_BETA].to_numpy(), (0.05, 0.5, 0.95))
    narrow = high - low < NEARLY_CONSTANT
    detail = (
        f"median {middle:.3f}; nine of ten pairs lie in between (less than {NEARLY_CONSTANT} apart "
        "is nearly one beta for all, and worth a look)"
    )
    return Card(
        "Beta", f"{low:.3f} \u2013 {high:.3f}", detail, LOOK if narrow else GOOD, "schedule"
    )


def _agreement(schedule: pa.Table, panel: Panel, figures: Json) -> list[Card]:
    if len(panel.teachers) < 2:
        return []
    asked = schedule.filter(pc.invert(schedule[PREDICTED_COLUMN]))
    betas = [asked[f"beta_{name}_{ENSEMBLE}"].to_numpy() for name in panel.teachers]
    ranks = [spearman(one, other) for one, other in combinations(betas, 2)]
    known = [value for value in ranks if not np.isnan(value)]
    order = float(np.mean(known)) if known else None
    alpha = figures["agreement"]["teachers"]["alpha"]
    categories = "not defined" if alpha is None else f"{alpha:.2f}"
    weak = order is None or order < WEAK_ORDER or alpha is None or alpha < TENTATIVE
    return [
        Card(
            "Teachers agree",
            "not defined" if order is None else f"{order:.2f}",
            f"mean rank correlation of their betas (below {WEAK_ORDER} is worth a look); "
            f"Krippendorff's alpha of categories {categories} (below {TENTATIVE} nothing "
            "should be concluded from categories)",
            LOOK if weak else GOOD,
            "agreement",
        )
    ]


def _labels(flipped: int, count: int) -> Card:
    share = flipped / max(count, 1)
    return Card(
        "Labels in doubt",
        f"{flipped:,}",
        f"pairs whose order the panel finds more likely wrong than right ({share:.1%}; above "
        f"{MANY_FLIPPED:.0%} is worth a look). Their confidence keeps their beta low",
        LOOK if share > MANY_FLIPPED else GOOD,
        "pairs",
    )


def _arms(arms: list[Json], trained: int) -> Card:
    if trained and not arms:
        detail = "give some for a comparison: data.eval_fraction or data.eval_source"
        return Card("Best arm", "trained, not scored: no held-out pairs", detail, PLAIN, "arms")
    others = [row for row in arms if row["gain"]]
    if not others:
        text = "not trained yet" if not arms else f"{arms[0]['arm']} alone"
        detail = "train and compare: sp2dpo sweep CONFIG, then sp2dpo report CONFIG"
        return Card("Best arm", text, detail, PLAIN, "arms")
    best, baseline = max(others, key=lambda row: row["gain"]["mean"]), arms[0]["arm"]
    gain = best["gain"]
    detail = (
        f"{best['arm']} beside {baseline}: {best['verdict']}, held-out accuracy "
        f"{gain['mean']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]. "
    )
    detail += (
        f"The best of {len(others)} arms by this very figure, which flatters it: not marked good"
        if len(others) > 1
        else f"Good if the interval lies above 0, of {FEWEST_PAIRS} pairs or more"
    )
    value = best["arm"] if gain["mean"] > 0 else f"{baseline}, the baseline"
    clear = len(others) == 1 and gain["low"] > 0 and best["pairs"] >= FEWEST_PAIRS
    return Card("Best arm", value, detail, GOOD if clear else PLAIN, "arms")


def _judged(judged: list[Json]) -> Card:
    rated = [row for row in judged if row["figures"][LENGTH_CONTROLLED] is not None]
    if not rated:
        detail = "too little was judged for a length-controlled win rate on AlpacaEval 2"
        return Card("Judged best", "not told", detail, PLAIN, "judged")
    best = max(rated, key=lambda row: row["figures"][LENGTH_CONTROLLED])
    others = len(judged) - 1
    detail = (
        f"{best['model']}: length-controlled win rate on AlpacaEval 2, highest of {len(rated)}. By "
        f"plain preference, item by item: {best['verdict']}. Good if that interval lies above 0 "
        "and no other student stands beside the baseline"
    )
    clear = others == 1 and bool(best["gain"]) and best["gain"]["low"] > 0
    rate = best["figures"][LENGTH_CONTROLLED]
    return Card("Judged best", f"{rate:.2f} %", detail, GOOD if clear else PLAIN, "judged")


def _cost(costs: list[CostRow]) -> Card:
    answers = sum(row.answers for row in costs)
    if not costs:
        detail = "no teacher or judge told its tokens: rules and models of one's own"
        return Card("Cost", "no paid call", detail, PLAIN, "process")
    priced = [row.usd for row in costs if row.usd is not None]
    unpriced = len(costs) - len(priced)
    detail = f"for {answers:,} answers on record" + (
        f"; {unpriced} of {len(costs)} models have no price in the configuration"
        if unpriced
        else ""
    )
    value = f"{sum(priced):,.2f} USD" if priced else "no price"
    return Card("Cost", value, detail, LOOK if unpriced else PLAIN, "cost")
