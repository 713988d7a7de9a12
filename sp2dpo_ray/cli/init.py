"""`sp2dpo init`: five questions, and a configuration with comments to go on from.

In: answers, from options or from a person at a terminal. Out: a YAML file that loads. Invariant: no
file is replaced, and what is written has been read as a configuration before.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from sp2dpo_ray.cli.guard import guarded
from sp2dpo_ray.cli.options import Debug
from sp2dpo_ray.console import say
from sp2dpo_ray.errors import ConfigError

TEACHERS = {
    "openai": """\
  - name: openai
    provider: openai
    model: gpt-5-mini-2025-08-07 # look up what your account offers
    api_key_env: OPENAI_API_KEY # the name of the variable; the key itself is written nowhere
    options: {reasoning_effort: minimal} # else the answer's tokens go into thought
    limits: {rpm: 500, in_flight: 64} # what your account grants
    # price: {input: ..., output: ..., as_of: YYYY-MM-DD} # USD a million tokens; a budget needs it
    # mode: batch # half the price, answered within a day
""",
    "gemini": """\
  - name: gemini
    provider: gemini
    model: gemini-2.5-flash
    api_key_env: GEMINI_API_KEY
    options: {thinking_budget: 0}
    limits: {rpm: 500, in_flight: 64}
""",
    "dashscope": """\
  - name: qwen
    provider: dashscope
    model: qwen-max-2025-01-25
    api_key_env: DASHSCOPE_API_KEY
    limits: {rpm: 300, in_flight: 64}
""",
    "server": """\
  - name: local
    provider: openai # any server that speaks OpenAI's protocol: vLLM, SGLang, llama.cpp
    model: Qwen/Qwen3-32B
    base_url: http://127.0.0.1:8000/v1
    limits: {in_flight: 64}
""",
    "vllm": """\
  - name: hosted
    provider: vllm # this cluster's own GPUs; see configs/teachers
    model: Qwen/Qwen3-32B
    engine: {tensor_parallel: 1, replicas: 1} # GPUs of one engine, and how many engines
""",
    "rules": """\
  - {name: alba, provider: offline, model: rules, options: {persona: balanced}} # no language model:
  - {name: bruno, provider: offline, model: rules, options: {persona: strict}} # fixed rules, which
  - {name: carla, provider: offline, model: rules, options: {persona: generous}} # only show the way
""",
}
FILE = """\
# Made by sp2dpo init. Every key: sp2dpo's documentation, Reference > Configuration.
# Next: sp2dpo doctor {path}, then prepare and plan, which tells what annotation would cost.
run: {{name: {name}, storage: runs}} # a folder that all nodes see, or s3://bucket/path

data:
  source: {pairs} # parquet, JSONL, JSON, CSV, a folder of these, or a Hugging Face id
  eval_fraction: 0.05 # of the prompts, held out to compare what was trained
  # limit: 200 # so many pairs, to try everything for little money first

# Each describes the gap of every pair under three prompts; beta is made of their answers.
teachers:
{teachers}
# budget: {{usd: 50}} # never passed; wants a price of each teacher
annotate:
  redact: false # true masks e-mail addresses, phone numbers and keys before text leaves

student:
  model: {student} # a folder or an id: causal, with a chat template and safetensors weights

train:
  workers: {workers}
  gpus_per_worker: {gpus}
  precision: {precision}
  pairs_per_step: {step}
  learning_rate: {rate}

# The schedule beside the global betas that one would have used, and a control.
sweep: {{arms: ["jmamp", "dpo:0.1", "dpo:0.3", "random"]}}
"""


def init(
    path: Annotated[Path, typer.Argument(help="The file to write.")] = Path("mine.yaml"),
    name: Annotated[str | None, typer.Option(help="Of the run; a folder of it is made.")] = None,
    pairs: Annotated[str | None, typer.Option(help="File, folder or Hugging Face id.")] = None,
    teachers: Annotated[
        str | None, typer.Option(help=f"Of {', '.join(TEACHERS)}; several with commas.")
    ] = None,
    student: Annotated[str | None, typer.Option(help="Folder, Hugging Face id, or tiny.")] = None,
    gpus: Annotated[int | None, typer.Option(min=0, help="To train on; 0: this CPU.")] = None,
    debug: Debug = False,
) -> None:
    """Ask five questions and write a configuration with comments."""

    def work() -> None:
        if path.exists():
            raise ConfigError(f"{path} is there already; name another file: sp2dpo init other.yaml")
        if not path.parent.is_dir():
            raise ConfigError(f"{path.parent} is no folder; make it, or name another file")
        _known(teachers or "rules")  # before the first question
        answers = {"name": name, "pairs": pairs, "teachers": teachers, "student": student,
                   "gpus": gpus}  # fmt: skip
        defaults = [key for key, value in answers.items() if value is None]
        if defaults and not sys.stdin.isatty():
            say(f"no terminal to ask at: defaults for {', '.join(defaults)}")
        text = configuration(
            path,
            name or _ask("Name of the run", path.stem),
            pairs or _ask("Your pairs (file, folder, Hugging Face id)", "pairs.parquet"),
            teachers
            or _ask(f"Teachers ({', '.join(TEACHERS)})", "openai,gemini,dashscope", _known),
            student or _ask("Student (folder, id, or tiny)", "Qwen/Qwen3-4B-Instruct-2507"),
            _ask("GPUs to train on (0: this CPU)", "1", _count) if gpus is None else gpus,
        )
        _check(text, path)
        path.write_text(text, encoding="utf-8")
        say(f"written: {path}\nnext: sp2dpo doctor {path}")

    raise typer.Exit(guarded(work, debug))


def configuration(path: Path, name: str, pairs: str, teachers: str, student: str, gpus: int) -> str:
    """The file's text. Raises ConfigError for a teacher that is not known."""
    chosen = [teacher.strip() for teacher in _known(teachers).split(",") if teacher.strip()]
    return FILE.format(
        path=path,
        name=_quoted(name),
        pairs=_quoted(pairs),
        teachers="".join(TEACHERS[teacher] for teacher in dict.fromkeys(chosen)).rstrip("\n"),
        student=_quoted(student),
        workers=gpus or min(2, os.cpu_count() or 1),
        gpus=1 if gpus else 0,
        precision="bf16" if gpus else "fp32",
        step=64 if gpus else 16,
        rate="5.0e-6" if student != "tiny" else "5.0e-4",
    )


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)  # what JSON quotes, YAML reads


def _known(teachers: str) -> str:
    """The answer, if it names teachers that there are."""
    chosen = [teacher.strip() for teacher in teachers.split(",") if teacher.strip()]
    if unknown := [teacher for teacher in chosen if teacher not in TEACHERS]:
        raise ConfigError(f"teachers: {unknown[0]!r} is none of {list(TEACHERS)}")
    if not chosen:
        raise ConfigError(f"teachers: name one or more of {list(TEACHERS)}")
    return teachers


def _count(answer: str) -> int:
    if not answer.strip().isdecimal():
        raise ConfigError(f"GPUs: {answer!r} is no whole number from 0")
    return int(answer)


def _check(text: str, path: Path) -> None:
    import tempfile

    from sp2dpo_ray.config import load_config

    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / path.name
        trial.write_text(text, encoding="utf-8")
        try:
            load_config(str(trial), ())
        except ConfigError as error:  # the trial's file is gone when this is read
            raise ConfigError(str(error).replace(str(trial), str(path))) from None


def _ask(question: str, default: str, read: Callable[[str], Any] = str) -> Any:
    """A person's answer, asked for again while `read` refuses it; where nobody can be asked, the
    default."""
    if not sys.stdin.isatty():
        return read(default)

    def once(answer: str) -> Any:
        try:
            return read(answer)
        except ConfigError as error:
            raise typer.BadParameter(str(error)) from None

    return typer.prompt(question, default=default, err=True, value_proc=once)
