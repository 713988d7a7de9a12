"""Summaries for a person: tables on stderr, stdout stays free for `--json`.

In: the summary of a command. Out: text. Invariant: nothing is shown that the summary does not hold.
"""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from sp2dpo_ray.console import say, stderr
from sp2dpo_ray.core.checklist import Line
from sp2dpo_ray.run import Summary
from sp2dpo_ray.stages import brief


def show(summary: Summary) -> None:
    """The summary for a person: the arms as a table where there are some."""
    if "arms" in summary.get("report", {}):
        _show_arms(summary["report"]["arms"])
        say(f"\npage: {summary['report']['page']}")
    elif "calls_recorded" in summary:
        _show_plan(summary)
    elif "teacher_weights" in summary:
        _show_agreement(summary)
    elif "scored" in summary:
        say(summary["text"])
        say(f"{summary['calls_made']:,} judge calls, {summary['cost_usd']:,.2f} USD")
    elif "page" in summary:
        say(summary["text"])
        say(f"page: {summary['page']}\ntable: {summary['table']}")
    else:
        say(brief(summary))
        for name in ("sheet", "folder"):
            if name in summary:
                say(f"{name}: {summary[name]}")


def _show_arms(arms: list[dict[str, Any]]) -> None:
    pairs = arms[0]["pairs"] if arms else 0
    table = Table(
        title=f"{pairs} held-out pairs, 95 % paired intervals", title_justify="left", box=SIMPLE
    )
    table.add_column("arm", no_wrap=True)
    for name in ("accuracy", "margin", "less baseline"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for row in arms:
        table.add_row(
            row["arm"],
            _interval(row["accuracy"], ".2f"),
            f"{row['margin']['mean']:+.2f}",
            _interval(row["gain"], "+.2f") if row["gain"] else "",
            row["verdict"],
        )
    stderr.print(table)


def _show_plan(summary: Summary) -> None:
    table = Table(title="what annotation would still ask", title_justify="left", box=SIMPLE)
    table.add_column("teacher", no_wrap=True)
    for name in ("calls left", "on record", "prompt tokens", "USD", "hours"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, row in (*summary["teachers"].items(), ("all", summary)):
        cost = row["cost_usd"]
        table.add_row(
            name,
            f"{row['calls'] - row['calls_recorded']:,}",
            f"{row['calls_recorded']:,}",
            f"{row['prompt_tokens']:,}",
            "no price" if cost is None else f"{cost:,.2f}",
            f"{row['hours']:,.1f}",
        )
    stderr.print(table)
    for name, row in summary["judging"].items():
        cost = row["cost_usd"]
        money = "no price" if cost is None else f"at most {cost:,.2f} USD"
        say(f"judging {name}: {row['students']} students, {row['calls']:,} calls, {money}")
    if summary["spent_usd"]:
        say(f"spent so far, cut-off attempts at their worst: ${summary['spent_usd']:,.2f}")
    if summary["budget_usd"] is not None:
        say(f"budget.usd: ${summary['budget_usd']:,.2f}")


def _show_agreement(summary: Summary) -> None:
    basis = f"{summary['basis_pairs']} pairs, {summary['basis']}"
    table = Table(title=f"agreement with people, {basis}", title_justify="left", box=SIMPLE)
    table.add_column("teacher", no_wrap=True)
    for name in ("order", "category", "Brier", "weight"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, row in summary["teachers"].items():
        table.add_row(
            name,
            _share(row["order"]),
            _share(row["category"]),
            "" if row["brier"] is None else f"{row['brier']:.3f}",
            f"{summary['teacher_weights'][name]:.3f}",
        )
    stderr.print(table)
    say(f"labels that people find right: {_share(summary['labels_right'])}")
    for name, share in summary["labels_right_by_reason"].items():
        say(f"  listed as {name}: {_share(share)} of {share['pairs']}")
    weights = ", ".join(f"{name}: {value}" for name, value in summary["teacher_weights"].items())
    say(f"as alpha of Eq. 42:  ensemble: {{teacher_weights: {{{weights}}}}}")


def _share(value: dict[str, Any]) -> str:
    if value["share"] is None:
        return ""
    return f"{value['share']:.0%} [{value['low']:.0%}, {value['high']:.0%}]"


def show_checklist(lines: list[Line]) -> None:
    """Each line of the checklist with where it is held."""
    group = ""
    for line in lines:
        if line.group != group:
            group = line.group
            say(f"\n{group}")
        mark, text = ("[x]", line.where) if line.where else ("[ ]", f"missing: {line.missing}")
        say(f"  {mark} {line.demand}\n      {text}")
    missing = sum(line.where is None for line in lines)
    say(f"\n{len(lines) - missing} of {len(lines)} are held")


def show_diff(found: Summary) -> None:
    """What differs between two schedules."""
    pairs, beta = found["pairs"], found["beta"]
    say(
        f"{pairs['both']:,} pairs in both, {pairs['only_first']:,} only in the first, "
        f"{pairs['only_second']:,} only in the second"
    )
    for key, (one, other) in found["settings"].items():
        say(f"  {key}: {one} -> {other}")
    for name in ("first", "second"):
        if columns := found[f"columns_only_{name}"]:
            say(f"  columns only in the {name}: {', '.join(columns)}")
    if not beta["changed"]:
        say("every pair has the same default beta")
    else:
        say(
            f"default beta: {beta['changed']:,} pairs changed, mean {beta['mean_first']:.4f} -> "
            f"{beta['mean_second']:.4f}, mean move {beta['mean_move']:.4f}, largest "
            f"{beta['largest_move']:.4f}, Spearman {beta['spearman'] or float('nan'):.3f}"
        )
    for row in found["largest"]:
        say(f"  {row['prompt_id']}: {row['first']:.4f} -> {row['second']:.4f}")
    others = [name for name in found["columns"] if name != "beta_annotators_mean_ens"]
    if others:
        say(f"columns that differ besides: {', '.join(others)}")


def _interval(value: dict[str, float], form: str) -> str:
    return f"{value['mean']:{form}} [{value['low']:{form}}, {value['high']:{form}}]"
