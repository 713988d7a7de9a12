"""The predictor's card: what it is, whose answers it repeats, how far it can be trusted.

In: its record and figures. Out: Markdown. Invariant: it says nothing that they do not hold.
"""

from __future__ import annotations

from typing import Any

from sp2dpo_ray.core.taxonomy import CATEGORIES
from sp2dpo_ray.distill.figures import skill

Json = dict[str, Any]
FEW = 20  # test pairs that say nothing about skill
APART = {
    "prompt": "no prompt is on two sides",
    "pair": "they may share prompts, as it speaks of the same data set's other pairs",
}
USELESS = 0.05  # skill below which nothing was learned that is worth using


def card(record: Json, figures: Json) -> str:
    """The whole card."""
    pairs, apart = record["pairs"], APART[record["apart"]]
    parts = [
        f"""# Predictor of semantic gaps

Says of a preference pair what a panel of teachers would: category, magnitude, confidence, and with
them beta. It is no teacher of its own: it repeats what it saw. Trained on {pairs["fit"]:,} pairs,
calibrated on {pairs["calibrate"]:,} others, tested on {pairs["test"]:,} more; {apart}.""",
        "## Whose answers it repeats\n\n"
        + "\n".join(
            f"- teacher `{name}`: {provider}, {model}"
            for name, provider, model, *_ in record["teachers"]
        )
        + f"\n- prompts SHA-256 {record['prompts'][:16]}...",
        "## On the test pairs\n\n"
        + (_worth(record, figures) if figures["pairs"] else "There are none."),
    ]
    if figures["pairs"]:
        parts += [
            "## By the panel's category\n\n" + _categories(figures["by_category"]),
            "## Confidence\n\n" + _reliability(figures["reliability"]),
        ]
    parts.append("## Limits\n\n" + "\n".join(f"- {line}" for line in _limits(record, figures)))
    return "\n\n".join(parts) + "\n"


def is_useless(figures: Json) -> bool:
    """Whether enough test pairs show that nothing was learned."""
    return figures["pairs"] >= FEW and skill(figures) < USELESS


def _worth(record: Json, figures: Json) -> str:
    rows = [
        ("this predictor", "", figures["spearman"]),
        ("length difference", "_length", figures["spearman_length"]),
        ("constant", "_constant", None),
    ]
    lines = [
        "| | error of beta (mean absolute) | root mean square | Spearman |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {title} | {figures['mae' + key]:.4f} | {figures['rmse' + key]:.4f} | {_number(rank)} |"
        for title, key, rank in rows
    ]
    told = (
        f"Intervals that promise {record['coverage']:.0%} hold {figures['coverage']:.1%}; their "
        f"mean width is {figures['width']:.4f} of beta. Category: "
        f"{figures['category_accuracy']:.1%} right, the most frequent one alone "
        f"{figures['category_accuracy_constant']:.1%}."
    )
    return "\n".join(lines) + "\n\n" + told


def _categories(rows: Json) -> str:
    lines = [
        "| category | pairs | error | interval holds | width | found |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {row['pairs']:,} | {row['mae']:.4f} | {row['coverage']:.1%} | "
        f"{row['width']:.4f} | {row['recall']:.1%} |"
        for name, row in rows.items()
    ]
    return "\n".join(lines)


def _reliability(rows: list[Json]) -> str:
    lines = ["| predicted from | pairs | mean predicted | mean of the panel |", "|---|---|---|---|"]
    lines += [
        f"| {row['from']:.1f} | {row['pairs']:,} | {row['predicted']:.3f} | {row['panel']:.3f} |"
        for row in rows
    ]
    return "\n".join(lines)


def _limits(record: Json, figures: Json) -> list[str]:
    lines = [
        "Intervals hold for pairs like those it was calibrated on, over all of them together: not "
        "for each category, not for another data set.",
        "Its words are those of its training pairs; where most words of a pair are new to it, its "
        "answer is a guess, and counted as unfamiliar.",
    ]
    absent = [str(name) for name in CATEGORIES if str(name) not in record["categories"]]
    if absent:
        lines.append(f"No training pair was {', '.join(absent)}: it never says so.")
    if is_useless(figures):
        lines.append(
            "**It learned nothing worth using**: its error is that of a constant. The teachers "
            "disagree, or what they see is not in words and lengths."
        )
    if record["moved_by"] is None:
        lines.append("Too few pairs to calibrate: every interval is the whole range.")
    return lines


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
