"""The sections of generation and evaluation: benchmarks, their files, decoding, the judge.

In: plain values. Out: frozen models. Invariant: a benchmark that is named has its files and, where
it is judged, a judge; a judge that shares a model family with the panel must be allowed by name.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from sp2dpo_ray.config.panel import TeacherSection
from sp2dpo_ray.config.section import Section, without_credentials

Benchmark = Literal["alpaca_eval", "mt_bench", "ifeval", "arena_hard"]
JUDGED: tuple[Benchmark, ...] = ("alpaca_eval", "mt_bench", "arena_hard")


class GenerateSection(Section):
    """How students answer; equal for all that are compared."""

    engine: Literal["transformers", "vllm"] = "transformers"
    """`vllm`: through Ray Data, on GPUs; its answers may differ in the last bits from the other's,
    so one engine must answer for all that are compared."""
    tensor_parallel: int = Field(1, ge=1)
    """GPUs that share one model; of `vllm`."""
    max_new_tokens: int = Field(2048, ge=1)
    """Longest answer."""
    temperature: float = Field(0.0, ge=0)
    """0 takes the likeliest token each time."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Tokens are drawn from the likeliest ones that hold this share of the probability."""
    seed: int = 0
    """Of sampling; each question draws from its own."""
    rows: int = Field(8, ge=1)
    """Questions that a worker answers at once."""


class AlpacaEvalSection(Section):
    reference: str
    """The reference outputs: a JSON list of {instruction, output, generator}."""
    gamed: str | None = None
    """A local copy of df_gamed.csv of tatsu-lab/alpaca_eval; null: the package asks the hub."""


class MtBenchSection(Section):
    questions: str
    """The benchmark's question.jsonl."""
    references: str | None = None
    """Reference answers of the categories that are graded with one."""


class ArenaHardSection(Section):
    questions: str
    """The benchmark's question.jsonl."""
    baseline: str
    """The baseline's answers."""
    sides: Literal["random", "both"] = "random"
    """`random`: one call an item, as the paper has it; `both`: one in each order."""


class IfevalSection(Section):
    prompts: str
    """The benchmark's input_data.jsonl."""


class EvaluateSection(Section):
    benchmarks: tuple[Benchmark, ...] = ()
    """Which are answered and judged; each needs its section below."""
    arms: tuple[str, ...] | None = None
    """Whose students are evaluated; null: every arm of `sweep.arms` that is trained."""
    base: bool = True
    """Evaluate the student before training, too."""
    outputs: dict[Annotated[str, Field(pattern=r"^[\w.-]+$")], dict[Benchmark, str]] = Field(
        default_factory=dict
    )
    """Answers that exist already, by name: {gemma: {alpaca_eval: outputs.json}}."""
    judge: TeacherSection | None = None
    allow_shared_judge: bool = False
    """Take a judge of a family that annotates, too; the report says so."""
    budget_usd: float | None = Field(None, gt=0)
    """Most money that the judge's journal may ever have cost."""
    journal: str | None = None
    """Folder or object store of the judge's journal; `eval/journal/` of the run if not given."""
    prompts: str | None = None
    """Folder with judge prompts in the place of our own wording."""
    alpaca_eval: AlpacaEvalSection | None = None
    mt_bench: MtBenchSection | None = None
    arena_hard: ArenaHardSection | None = None
    ifeval: IfevalSection | None = None

    @model_validator(mode="after")
    def _whole(self) -> EvaluateSection:
        without_credentials(self.journal or "", "journal")
        for name in self.benchmarks:
            if getattr(self, name) is None:
                raise ValueError(f"benchmarks: {name} needs its files, see evaluate.{name}")
        judged = [name for name in self.benchmarks if name in JUDGED]
        if judged and self.judge is None:
            raise ValueError(f"benchmarks: {judged} are judged; name a judge in evaluate.judge")
        if self.judge and "alpaca_eval" in self.benchmarks and self.judge.provider != "openai":
            raise ValueError(
                "judge: alpaca_eval reads log-probabilities of the answer's first token, which "
                f"provider openai brings, not {self.judge.provider}"
            )
        if self.judge and self.budget_usd is not None and not self.judge.price.known:
            raise ValueError("budget_usd needs the judge's price: {input, output, as_of}")
        return self


FAMILIES = ("llama", "qwen", "gemini", "gemma", "mistral", "claude", "deepseek", "phi", "glm")
ALSO = {"mixtral": "mistral", "ministral": "mistral", "magistral": "mistral", "qwq": "qwen"}


def family_of(model: str) -> str:
    """The family of a model id, wherever its name stands in it; of an unknown one the letters that
    it begins with."""
    name = model.rpartition("/")[2].lower()
    if re.match(r"(chat)?gpt|o\d", name):
        return "gpt"
    for match in re.finditer(r"[a-z]+", name):
        part = match[0]
        if part in FAMILIES or part in ALSO:
            return ALSO.get(part, part)
    found = re.match(r"[a-z]+", name)
    return found[0] if found else name


def shared_with(judge: TeacherSection, teachers: tuple[TeacherSection, ...]) -> list[str]:
    """The teachers of the judge's own model family."""
    family = family_of(judge.model)
    return [t.name for t in teachers if not t.instead_of_model and family_of(t.model) == family]
