"""Stage `evaluate`: judge and score the answers, and compare the students item by item.

In: `eval/<arm>/<benchmark>/outputs/`, or outputs that are named. Out: `scores/` beside them, and
`eval/comparison.json` and `.md`. Invariant: a judgement on record is never asked again; with
--offline every figure comes from the journal and nothing else.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sp2dpo_ray.config.evaluate import shared_with
from sp2dpo_ray.console import bar, say
from sp2dpo_ray.core.annotation import SETTLED
from sp2dpo_ray.core.arms import parse_arm
from sp2dpo_ray.core.artifact import MANIFEST, Draft, open_artifact, write_atomically
from sp2dpo_ray.core.files import COMPARISON, COMPARISON_TEXT, ITEMS, OUTPUTS, RESULT
from sp2dpo_ray.core.hashing import sha256_file, sha256_hex
from sp2dpo_ray.core.place import find_place
from sp2dpo_ray.errors import ConfigError, DataError
from sp2dpo_ray.evaluate.items import Answers, Item, Result, read_lines
from sp2dpo_ray.evaluate.judging import Judge, Question, Verdict, ask, outcomes_of
from sp2dpo_ray.evaluate.standings import markdown, standings
from sp2dpo_ray.run import Run, Summary
from sp2dpo_ray.stages.benchmarks import BENCHMARKS
from sp2dpo_ray.stages.generate import BASE, is_generated, models_of, outputs_folder


@dataclass(frozen=True, slots=True)
class Entry:
    """A student with its answers to a benchmark: generated here, or named in the configuration."""

    model: str
    benchmark: str
    path: Path
    folder: Path
    generated: bool


def evaluate(run: Run) -> Summary:
    """Score every student on every benchmark, and compare them."""
    section = run.config.evaluate
    if not section.benchmarks:
        raise ConfigError("evaluate.benchmarks names none; there are " + ", ".join(BENCHMARKS))
    shared = _check_judge(run)
    start, calls, results = time.perf_counter(), 0, {}
    for name in section.benchmarks:
        items = BENCHMARKS[name].items(section)
        for entry in _entries(run, name):
            summary = _score(run, entry, items, shared)
            calls += summary["calls_made"]
            results[name, entry.model] = summary
    if not results:
        raise DataError("nothing to evaluate: no answers are there; run: sp2dpo generate")
    rows = _compare(run, list(section.benchmarks))
    text = markdown(rows, shared)
    write_atomically(run.path("eval", COMPARISON), json.dumps(rows, indent=2) + "\n")
    write_atomically(run.path("eval", COMPARISON_TEXT), text)
    return {
        "scored": len(results),
        "calls_made": calls,
        "cost_usd": round(sum(each["cost_usd"] for each in results.values()), 6),
        "shared_judge": shared,
        "table": rows,
        "text": text,
        "seconds": time.perf_counter() - start,
    }


def _check_judge(run: Run) -> list[str]:
    """The teachers of the judge's family; ConfigError where that was not allowed."""
    section = run.config.evaluate
    shared = shared_with(section.judge, run.config.teachers) if section.judge else []
    if shared and not section.allow_shared_judge:
        assert section.judge is not None
        raise ConfigError(
            f"evaluate.judge: {section.judge.model} is of the family of teachers {shared}: a panel "
            "must not judge its own schedule. Take another judge, or evaluate.allow_shared_judge: "
            "true, and the report says so"
        )
    return shared


def _entries(run: Run, benchmark: str) -> list[Entry]:
    found = []
    for model in models_of(run):
        folder = outputs_folder(run, model, benchmark)
        if is_generated(run, model, benchmark):
            found.append(Entry(model, benchmark, folder / OUTPUTS, folder.parent / "scores", True))
        else:
            say(
                f"evaluate: {model}, as it is now, has no answers to {benchmark}; "
                "run: sp2dpo generate"
            )
    for name, paths in run.config.evaluate.outputs.items():
        if benchmark in paths:
            folder = run.path("eval", name, benchmark, "scores")
            found.append(Entry(name, benchmark, Path(paths[benchmark]), folder, False))
    return found


def _answers(items: list[Item], entry: Entry) -> Answers:
    """Of a file in alpaca-eval's format, or with ids and turns, as `generate` writes it."""
    by_question = {item.turns[0]: item.id for item in items}
    found: dict[str, tuple[str, ...]] = {}
    for number, row in enumerate(read_lines(entry.path)):
        text = row.get("instruction", row.get("prompt"))
        name = str(row["id"]) if "id" in row else by_question.get(str(text), str(text))
        turns = row.get("turns") or [row.get("output", row.get("response"))]
        if not all(isinstance(turn, str) for turn in turns):
            raise DataError(f"{entry.path}: entry {number}: an answer is no text")
        if name in found:
            raise DataError(f"{entry.path}: {name[:60]!r} is answered twice")
        found[name] = tuple(turns)
    return found


def _score(run: Run, entry: Entry, items: list[Item], shared: list[str]) -> Summary:
    section, benchmark = run.config.evaluate, BENCHMARKS[entry.benchmark]
    answers = _answers(items, entry)
    questions = benchmark.questions(section, items, answers)
    judge = judge_of(run, entry.benchmark) if questions else None
    settings = {
        "benchmark": entry.benchmark,
        "outputs": sha256_file(entry.path),
        "questions": sha256_hex([[i.id, list(i.turns), dict(i.known)] for i in items]),
        "calls": sha256_hex([judge.key(q.messages) for q in questions] if judge else []),
        "pins": benchmark.pins(section),
    }
    inputs = {"generate": entry.path.parent} if entry.generated else {}
    provenance = run.provenance("evaluate", settings, inputs)
    done = run.finished(entry.folder, provenance)
    if done and SETTLED.issuperset(done.summary["outcomes"]):
        return done.summary | {"reused": True, "calls_made": 0, "cost_usd": 0.0}
    verdicts, made, usd = _ask(run, judge, entry, questions)
    places = {(q.item, q.kind): v for q, v in zip(questions, verdicts, strict=True)}
    result = benchmark.score(section, items, answers, places)
    if run.offline and (gaps := sum(verdict.outcome not in SETTLED for verdict in verdicts)):
        raise DataError(
            f"--offline: {gaps:,} judgements of {entry.model} on {entry.benchmark} are not on "
            "record; run evaluate without --offline to ask for them"
        )
    if done:  # with gaps that may be closed now
        (entry.folder / MANIFEST).unlink()

    def make(draft: Draft) -> None:
        content = _content(run, entry, result, verdicts, settings, shared)
        for name, value in ((RESULT, content), (ITEMS, result.rows)):
            (draft.path / name).write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
        draft.summary |= {
            "model": entry.model,
            "figures": result.figures,
            "notes": result.notes,
            "outcomes": outcomes_of(verdicts),
        }

    summary = run.publish_once(entry.folder, provenance, make)
    return summary | {"calls_made": made, "cost_usd": usd}


def judge_of(run: Run, benchmark: str) -> Judge:
    """The judge as this benchmark asks it."""
    config, row = run.config, BENCHMARKS[benchmark]
    section = config.evaluate.judge
    assert section is not None
    # the panel's answer schema is no judge's; what a benchmark needs stands before own options
    options = {"response_format": None, **row.options, **section.options}
    return Judge(
        section.model_copy(update={"options": options}),
        row.decoding(config.decoding),
        find_place(run.journal_at(config.evaluate.journal, "eval", "journal")),
        config.evaluate.budget_usd,
        config.annotate.max_failures,
        config.annotate.max_pause_s,
    )


def _ask(
    run: Run, judge: Judge | None, entry: Entry, questions: list[Question]
) -> tuple[list[Verdict], int, float]:
    if judge is None:
        return [], 0, 0.0
    title = f"evaluate {entry.model} {entry.benchmark}"

    def announce(calls: int, usd: float | None) -> None:
        money = "" if usd is None else f", at most {usd:,.2f} USD (Eq. 60)"
        say(f"{title}: {calls:,} of {len(questions):,} judgements are to be asked{money}")

    with bar(f"{title}: judgements", len(questions)) as advance:
        return ask(judge, questions, offline=run.offline, announce=announce, advance=advance)


def _content(
    run: Run, entry: Entry, result: Result, verdicts: list[Verdict], settings: dict[str, Any],
    shared: list[str],
) -> dict[str, Any]:  # fmt: skip
    section = run.config.evaluate
    served = sorted({v.served_model for v in verdicts if v.served_model})
    judged = bool(verdicts) and section.judge is not None
    return {
        "model": entry.model,
        "benchmark": entry.benchmark,
        "figures": result.figures,
        "values": result.values,
        "notes": result.notes,
        "outcomes": outcomes_of(verdicts),
        "judge": {
            "model": section.judge.model,
            "served": served,
            "shares_a_family_with": shared,
            "decoding": BENCHMARKS[entry.benchmark].decoding(run.config.decoding).of_answers,
            "calls": len(verdicts),
            "prompt_tokens": sum(v.prompt_tokens for v in verdicts),
            "completion_tokens": sum(v.completion_tokens for v in verdicts),
            "usd": sum(v.usd for v in verdicts) if section.judge.rate else None,
        } if judged and section.judge else None,
        "pins": settings,
    }  # fmt: skip


def _compare(run: Run, benchmarks: list[str]) -> list[dict[str, Any]]:
    """The standings of every benchmark, from the published scores."""
    rows = []
    for name in benchmarks:
        results = {}
        for entry in _entries(run, name):
            open_artifact(entry.folder)
            results[entry.model] = json.loads((entry.folder / RESULT).read_text(encoding="utf-8"))
        if results:
            tuned = [model for model in results if model != BASE and _is_global(model)]
            rows += standings(name, BENCHMARKS[name].headline, results, tuned)
    return rows


def _is_global(name: str) -> bool:
    try:
        return parse_arm(name).is_global
    except ConfigError:
        return False  # outputs from elsewhere
