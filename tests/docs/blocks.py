"""The fenced blocks of the documentation, and what each kind of them must be.

In: README.md and the pages. Out: blocks with their place; checks of those that need no run.
Invariant: a block of an unknown language, a command of an unknown program, and a fence that nothing
closes are errors, so no block is passed over.
"""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from typer.main import get_command

from sp2dpo_ray.cli.commands import app
from sp2dpo_ray.config import Config, load_config
from sp2dpo_ray.core.pairs import Pair, read_pairs
from sp2dpo_ray.core.sources import read_source
from sp2dpo_ray.stages import STAGES, WHOLE_RUN
from tests.conftest import REPOSITORY

DEMO = REPOSITORY / "configs" / "demo.yaml"
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
FENCE = re.compile(r"^( *)```([^\n`]*)\n(.*?)^\1```[ \t]*$", re.MULTILINE | re.DOTALL)
LANGUAGES = ("", "bash", "json", "python", "text", "yaml")

# commands that are parsed and not run: how they begin, and why
NOT_RUN = {
    "submit": "needs a cluster's job server",
    "jobs": "needs a cluster's job server",
    "push": "needs an object store; tests/stages and tests/cluster have one",
    "pull": "needs an object store; tests/stages and tests/cluster have one",
    "status /shared": "a folder of a cluster",
    "lab": "trains for minutes; tests/lab runs it small",
    "generate": "needs the benchmarks' files; tests/evaluate makes some",
    "evaluate": "needs the benchmarks' files and a judge; tests/evaluate makes some",
}


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block; `place` is page and line."""

    page: str
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(path: Path) -> list[Block]:
    """The blocks of a page in order; ValueError where a fence is not closed."""
    text = path.read_text(encoding="utf-8")
    page = path.relative_to(REPOSITORY).as_posix()
    found = [
        Block(page, text.count("\n", 0, m.start()) + 1, m[2].strip(), m[3])
        for m in FENCE.finditer(text)
    ]
    fences = len(re.findall(r"^ *```", text, re.MULTILINE))
    if fences != 2 * len(found):
        raise ValueError(f"{page}: {fences} fences make {len(found)} blocks")
    return found


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def of_language(*languages: str) -> list[Block]:
    return [block for block in BLOCKS if block.language in languages]


def commands_of(text: str) -> Iterator[list[str]]:
    """The words of each command of a bash block, comments left out."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words:
            end = words.index("&&") if "&&" in words else len(words)
            yield words[:end]
            words = words[end + 1 :]


def why_not_run(arguments: list[str]) -> str | None:
    """Why a `sp2dpo` command is only parsed; None: it is run."""
    text = " ".join(arguments)
    return next((why for start, why in NOT_RUN.items() if text.startswith(start)), None)


def is_configuration(block: Block) -> None:
    """A yaml block is a configuration, or a part of one that is laid over the demo's."""
    content = yaml.safe_load(DEMO.read_text()) | yaml.safe_load(block.text)
    Config.model_validate(content)


def is_pairs(block: Block, folder: Path) -> None:
    """A json block has rows of a data set, each a pair."""
    path = folder / "rows.jsonl"
    path.write_text(block.text, encoding="utf-8")
    rows = list(read_pairs(read_source(str(path), split=None, revision=None)))
    assert rows, block.place
    assert all(isinstance(row, Pair) for row in rows), f"{block.place}: {rows}"


def is_sp2dpo(arguments: list[str]) -> dict[str, Any]:
    """The real parser takes it, the stage exists, and its `--set` are keys of the configuration."""
    command: Any = get_command(app)
    rest = list(arguments)
    while commands := getattr(command, "commands", None):
        assert rest, f"sp2dpo {' '.join(arguments)}: a command is missing"
        assert rest[0] in commands, f"sp2dpo {' '.join(arguments)}: no command {rest[0]}"
        command = commands[rest.pop(0)]
    given: dict[str, Any] = command.make_context("sp2dpo", rest).params
    if "stage" in given:
        assert given["stage"] in {*STAGES, WHOLE_RUN.name}, given
    if given.get("config"):
        load_config(str(DEMO), tuple(given["set_"] or ()))
    return given


def is_make(arguments: list[str]) -> None:
    text = (REPOSITORY / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z][\w-]*):", text, re.MULTILINE))
    assert arguments, "make without a target"
    assert set(arguments) <= targets, f"make {arguments}: the targets are {sorted(targets)}"


def is_export(arguments: list[str]) -> None:
    for word in arguments:
        assert re.fullmatch(r"[A-Z][A-Z0-9_]*=\S*", word), f"export {word}"


def is_source(arguments: list[str]) -> None:
    assert arguments == [".venv/bin/activate"]


def is_pip(arguments: list[str]) -> None:
    """Extras that are named exist."""
    content = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    known = content["project"]["optional-dependencies"].keys()
    for extras in re.findall(r"sp2dpo-ray\[([\w,]+)\]", " ".join(arguments)):
        assert set(extras.split(",")) <= known, f"pip {arguments}: the extras are {list(known)}"
    assert arguments[0] == "install"


def is_python(arguments: list[str]) -> None:
    """A script of ours with options that it knows, and `--set` of keys that exist."""
    script = REPOSITORY / arguments[0]
    assert script.is_file(), f"python {arguments[0]}: no such file"
    sets = [value for name, value in pairwise(arguments) if name == "--set"]
    load_config(str(DEMO), tuple(sets))
    for name in arguments[1:]:
        if name.startswith("--"):
            assert name in script.read_text(), f"python {arguments[0]}: no option {name}"


def is_ray(arguments: list[str]) -> None:
    """Ray's own parser takes it; it needs a cloud, so it is not run."""
    from ray.scripts.scripts import cli

    name, *rest = arguments
    cli.commands[name].make_context(name, rest, resilient_parsing=False)


# every program that the documentation calls; what is not here fails
PROGRAMS = {
    "export": is_export,
    "make": is_make,
    "pip": is_pip,
    "python": is_python,
    "ray": is_ray,
    "source": is_source,
    "sp2dpo": is_sp2dpo,
}
