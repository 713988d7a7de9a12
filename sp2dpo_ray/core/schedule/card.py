"""The data card of a schedule: what it is, how it was made, what it holds, and its limits.

In: the recipe, the figures of `diagnostics.json`, facts about data and teachers. Out: Markdown.
Invariant: it says nothing that the artifact does not hold, and no clock or path enters.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sp2dpo_ray.core.schedule.columns import DEFAULT_BETA
from sp2dpo_ray.core.schedule.mapping import SHAPES, BetaMap
from sp2dpo_ray.core.schedule.recipe import Recipe

Json = dict[str, Any]
FEW_AGREE = 0.4  # below this rank correlation two teachers hardly measure the same thing


def card(recipe: Recipe, figures: Json, facts: Json) -> str:
    """The card of a schedule.

    facts: `data` and `teachers` (lists of lines), `prompts` (digest), `decoding` (settings by
    name), `excluded_before` (pairs that never reached the teachers, by reason).
    """
    beta = figures["beta"]
    parts = [
        f"""# Schedule of temperatures for {figures["pairs"]:,} preference pairs

One temperature beta for each pair, for DPO. A panel of teachers describes the semantic gap between
the chosen and the rejected response (category, magnitude, confidence); magnitude times confidence
is the effective gap, a fixed map makes it a beta. Train with the column `{DEFAULT_BETA}`
of `schedule.parquet`, keyed by `prompt_id`: mean {beta["mean"]:.4f}, median {beta["median"]:.4f},
from {beta["min"]:.4f} to {beta["max"]:.4f}.""",
        "## How it was made\n\n" + _bullets(_made(recipe, figures, facts)),
        "## Distribution by category\n\n"
        + _spread_table("category", figures["by_category"], figures["pairs"]),
        "## Distribution by disagreement\n\nQuarters of the standard deviation of beta over the "
        "teachers (Eq. 37).\n\n"
        + _spread_table("quarter", figures["by_disagreement"], figures["pairs"]),
        "## Agreement\n\n" + _agreement(figures),
        "## Other estimators\n\nEach is a column of `diagnostics.parquet`. Its betas against the "
        "default's:\n\n" + _estimators(figures),
        "## Limits\n\n" + _bullets(_limits(recipe, figures, facts)),
    ]
    return "\n\n".join(parts) + "\n"


def _made(recipe: Recipe, figures: Json, facts: Json) -> list[str]:
    before = sum(facts["excluded_before"].values())
    return [
        *facts["data"],
        f"{before:,} rows were left out before annotation{_counts(facts['excluded_before'])}; "
        f"{figures['excluded']:,} pairs for want of a whole set of annotations"
        f"{_counts(figures['exclusions'])} (`excluded.parquet` has each with its reason)",
        *facts["teachers"],
        f"prompt variants {', '.join(recipe.panel.variants)}, SHA-256 {facts['prompts'][:16]}...; "
        "decoding "
        + ", ".join(
            f"{name} {value}" for name, value in facts["decoding"].items() if value is not None
        ),
        "answers: one JSON object with exactly the three keys, a known category, numbers in "
        "[0, 1]; anything else is no annotation. Of repeated calls the first recorded counts "
        f"({figures['repeated_calls']:,} repeated, {figures['conflicting_calls']:,} of them "
        "with another answer)",
        "ensemble: median over prompts of the effective gap (Eq. 16), the map, mean over teachers "
        "(Eq. 17); categories by majority, ties by the order Safety, Factuality, Instruction, "
        "Reasoning, Helpfulness, Style",
        f"map: {describe_map(recipe.mapping)}",
    ]


def describe_map(map_: BetaMap) -> str:
    """The map in words."""
    parameters = SHAPES[map_.shape].describe(map_)
    text = f"{map_.shape}{parameters} onto [{map_.beta_min:g}, {map_.beta_max:g}]"
    if map_.categories:
        own = ", ".join(f"{name} [{low:g}, {high:g}]" for name, low, high in map_.categories)
        text += f"; envelopes of their own: {own}"
    if map_.gate != (0.0, 0.0):
        text += f"; gated by confidence from {map_.gate[0]:g} to {map_.gate[1]:g}"
    return text


def _agreement(figures: Json) -> str:
    found = figures["agreement"]
    ties = ", ".join(f"{name} {share:.1%}" for name, share in figures["ties"].items())
    lines = [
        "Between teachers, Spearman's rho of the effective gaps: "
        + _pairs(found["teachers"]["spearman"])
        + f"; Krippendorff's alpha of the categories {_number(found['teachers']['alpha'])} ("
        + _pairs(found["teachers"]["alpha_by_category"]) + ")",
        *(
            f"Between the prompts of {name}: {_pairs(row['spearman'])}; alpha "
            f"{_number(row['alpha'])}"
            for name, row in found["variants"].items()
        ),
        f"Votes for a category that only the priority order could settle: {ties}",
    ]  # fmt: skip
    return _bullets(lines)


def _estimators(figures: Json) -> str:
    rows = [
        [
            f"`{row['column']}`", row["title"], f"{row['mean']:.4f}", f"{row['mean_move']:.4f}",
            f"{row['largest_move']:.4f}", f"{row['moved']:.1%}", _number(row["spearman"]),
        ]
        for row in figures["estimators"].values()
    ]  # fmt: skip
    head = ["column", "what", "mean", "mean move", "largest", "moved by > 0.01", "Spearman"]
    same = [row["column"] for row in figures["estimators"].values() if not row["largest_move"]]
    note = f"\n\nEqual to the default for every pair: {', '.join(same)}." if same else ""
    return _table(head, rows) + note if rows else "None was asked for."


def _limits(recipe: Recipe, figures: Json, facts: Json) -> list[str]:
    lines = [
        "Teachers judge texts, not facts: a beta says how sure and how large the panel finds the "
        "gap, not that the label is right. `sp2dpo audit` lists the pairs for a person to look at.",
        "Categories serve the audit; with a map without envelopes of categories they do not move "
        "beta.",
    ]
    for name in facts.get("predictors", ()):
        lines.append(
            f"{name}: a predictor. It repeats what it learned from other teachers' answers; its "
            "own card says how well."
        )
    for what in dict.fromkeys(facts.get("without_model", {}).values()):
        names = ", ".join(name for name, own in facts["without_model"].items() if own == what)
        lines.insert(
            0,
            f"**{names}: no language model but {what}. The schedule is worth what they are: rules "
            "show how the method runs, a file is as good as whoever filled it.**",
        )
    for name, rows in figures["served_models"].items():
        if len(rows) > 1:
            versions = ", ".join(
                f"{row['model']} ({row['calls']:,} calls, mean gap {row['gap']:.3f})"
                for row in rows
            )
            lines.append(
                f"{name} was answered by {len(rows)} versions: {versions}. Their pairs differ too, "
                "so the means need not measure drift."
            )
    weak = [
        f"{pair} ({rho:.2f})"
        for pair, rho in figures["agreement"]["teachers"]["spearman"].items()
        if rho is not None and rho < FEW_AGREE
    ]
    if weak:
        lines.append(f"Teachers that hardly agree on the gap: {', '.join(weak)}.")
    skipped = sum(row["outcomes"].get("skipped", 0) for row in figures["coverage"].values())
    if skipped:
        lines.append(
            f"{skipped:,} calls were left out by economy mode: their columns are empty, and its "
            "bound holds for the default column alone."
        )
    if figures["predicted"]:
        lines.insert(
            0,
            f"**{figures['predicted']:,} of {figures['pairs']:,} pairs were told by a predictor in "
            "the teachers' place** (`predicted` in `diagnostics.parquet`): every call of theirs "
            "holds the same numbers. Agreement is that of the other pairs.",
        )
    if len(recipe.panel.teachers) == 1:
        lines.append("One teacher: nothing says how another would see it.")
    return lines


def _spread_table(what: str, groups: Json, total: int) -> str:
    rows = [
        [
            name, f"{row['pairs']:,}", f"{row['pairs'] / total:.1%}", f"{row['mean']:.4f}",
            f"{row['std']:.4f}", f"{row['quartile_1']:.4f}", f"{row['median']:.4f}",
            f"{row['quartile_3']:.4f}",
        ]
        for name, row in groups.items()
    ]  # fmt: skip
    head = [what, "pairs", "share", "mean beta", "std", "1st quartile", "median", "3rd quartile"]
    return _table(head, rows)


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---", *("---:" for _ in head[1:])], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _counts(counts: Json) -> str:
    return f" ({', '.join(f'{n:,} {name}' for name, n in counts.items())})" if counts else ""


def _pairs(values: Json) -> str:
    return ", ".join(f"{name} {_number(value)}" for name, value in values.items()) or "none"


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.2f}"
