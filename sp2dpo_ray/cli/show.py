"""Summaries for a person: tables on stderr, stdout stays free for `--json`.

In: the summary of a command. Out: text. Invariant: nothing is shown that the summary does not hold,
and no table where SP2DPO_LOG=json asks for lines that a machine reads.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.table import Table

from sp2dpo_ray.console import AS_JSON, say, stderr
from sp2dpo_ray.stages import brief

if TYPE_CHECKING:  # a summary is shown in a moment; what makes it takes one to import
    from sp2dpo_ray.core.checklist import Line
    from sp2dpo_ray.run import Summary


def tell(summary: Summary, as_json: bool, show_it: Callable[[Summary], None]) -> None:
    """The summary as JSON on stdout, or shown on stderr."""
    if as_json:
        print(json.dumps(summary, allow_nan=False), flush=True)
    elif AS_JSON:
        say("summary", summary=summary)
    else:
        show_it(summary)


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
    for name in ("accuracy", "margin", "vs baseline"):
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
    if summary["cost_usd"] is None:
        say("no price is known: give teachers a price {input, output, as_of}, USD a million tokens")
    for name, row in summary["judging"].items():
        cost = row["cost_usd"]
        money = "no price" if cost is None else f"at most {cost:,.2f} USD"
        say(f"judging {name}: {row['students']} students, {row['calls']:,} calls, {money}")
    if summary["spent_usd"]:
        say(f"spent so far, cut-off attempts at their worst: ${summary['spent_usd']:,.2f}")
    budget, left = summary["budget_usd"], summary["calls"] - summary["calls_recorded"]
    if budget is not None and left:
        needed = (summary["cost_usd"] or 0.0) + summary["spent_usd"]
        enough = "enough" if needed <= budget else "not enough: annotation will stop there"
        say(f"budget.usd: {budget:g} USD, {enough}")


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


def show_status(summary: Summary) -> None:
    """How far a run is."""
    work = "a command is working on it" if summary["at_work"] else "nobody is working on it"
    say(f"{summary['folder']}: {work}; last moved {_age(summary['idle_seconds'])} ago")
    table = Table(box=SIMPLE)
    for name in ("artifact", "state"):
        table.add_column(name, no_wrap=True)
    table.add_column("MB", justify="right")
    for row in summary["artifacts"]:
        table.add_row(row["artifact"], row["state"], f"{row['bytes'] / 1e6:,.1f}")
    stderr.print(table)
    asked = summary["annotation"]
    wanted = asked["calls_of_each_teacher"]
    for name, row in asked["teachers"].items():
        share = "" if wanted is None else f" of {wanted:,}"
        say(f"{name}: {row['calls']:,}{share} calls settled, {row['usd']:,.2f} USD")
    if asked["unanswered"]:
        say(f"{asked['unanswered']:,} calls were cut off and may have been paid")
    for row in summary["training"]:
        speed = row["tokens_per_second"]
        rate = "" if speed is None else f", {speed:,.0f} tokens a second"
        end = ", finished" if row["finished"] else ""
        steps = f"step {row['step']:,} of {row['steps']:,}"
        say(f"{row['arm']}: {steps}, loss {row['loss']:.4f}{rate}{end}")


def show_cleaned(summary: Summary) -> None:
    """What went, or could go."""
    gone = "removed" in summary
    for row in summary["removed" if gone else "could_go"]:
        say(f"{row['path']}: {row['why']}, {row['bytes'] / 1e6:,.1f} MB")
    size = f"{summary['bytes'] / 1e6:,.1f} MB"
    say(f"{size} removed" if gone else f"{size} could go; remove them with --apply")


def _age(seconds: float) -> str:
    for unit, name in ((86_400, "days"), (3_600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:,.0f} {name}"
    return f"{seconds:,.0f} seconds"


def show_sizes(summary: Summary) -> None:
    """Nodes, hours and money by stage."""
    title = (
        f"{summary['cloud']}: {summary['student_parameters'] / 1e9:,.3g} billion "
        f"parameters, {summary['tokens']:,} tokens"
    )
    table = Table(title=title, title_justify="left", box=SIMPLE)
    for name in ("stage", "group"):
        table.add_column(name, no_wrap=True)
    for name in ("nodes", "hours", "USD", "spot", "fees"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("from")
    for need in summary["needs"]:
        table.add_row(
            need["stage"], need["group"], f"{need['nodes']:,}", f"{need['hours']:,.2f}",
            _usd(need["usd"]), _usd(need["spot"]), _usd(need["fees"]), need["basis"],
        )  # fmt: skip
    stderr.print(table)
    say(
        f"all: {_usd(summary['usd'])} USD on demand, {_usd(summary['usd_spot'])} at spot prices, "
        f"{_usd(summary['fees'])} to teachers and judges"
    )
    gpu = summary["gpu"]
    room = f"{summary['gib_of_weights']:,.1f} GiB of weights and optimiser on {gpu['gib']} GiB"
    if not summary["fits"]:
        room += ": too little. Share them out (train.strategy: zero3 or fsdp, more workers)"
    say(f"{gpu['group']} ({gpu['type']}): {room}")
    say(f"prices: {summary['prices']}")
    if summary["written"]:
        say(f"written: {summary['written']}")


def _usd(value: float | None) -> str:
    return "no price" if value is None else f"{value:,.2f}"


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
