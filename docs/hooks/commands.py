"""Build hook of the documentation: the reference of every command.

In: the command tree of the program. Out: `reference/cli.md`, made at build time. Invariant: every
command stands there with all its arguments and options, and one without a help text says so.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

from mkdocs.structure.files import File, Files
from typer.main import get_command

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the package of this very checkout

from sp2dpo_ray.cli.commands import app

NO_MEANING = "(not described)"
KINDS = {"str": "text", "int": "whole number", "float": "number", "Path": "path"}


def on_files(files: Files, config: Any) -> Files:
    """Add the page."""
    files.append(File.generated(config, "reference/cli.md", content=commands()))
    return files


def commands() -> str:
    """The page of every command."""
    lines = [
        "# Command line",
        "",
        "Every command with its arguments and options, made from the program itself; `sp2dpo "
        "COMMAND --help` shows the same. Progress and messages go to stderr; with `--json` the "
        "last line of stdout is the summary as one JSON object.",
        "",
        "Exit codes: 0 done; 2 the configuration or a flag is wrong; 3 the data is wrong; 4 "
        "stopped and resumable, the same command goes on; 5 training failed; 1 a fault of the "
        "program. Each stage is a file in `jobs/` as well: `python jobs/train.py mine.yaml`.",
        "",
    ]
    for path, command in leaves("sp2dpo", get_command(app)):
        arguments = [p for p in command.params if p.opts[0][:1] != "-"]
        options = [p for p in command.params if p not in arguments]
        names = [p.name.upper() + ("..." if p.nargs == -1 else "") for p in arguments]
        shown = [n if p.required else f"[{n}]" for n, p in zip(names, arguments, strict=True)]
        usage = " ".join([path, *shown, *(["[OPTIONS]"] if options else [])])
        lines += [
            f"## {path}",
            "",
            " ".join((command.help or NO_MEANING).split()),
            "",
            f"`{usage}`",
            "",
        ]
        if command.params:
            lines += ["| | value | default | meaning |", "|---|---|---|---|"]
        rows = [*((f"`{n}`", p) for n, p in zip(names, arguments, strict=True)),
                *((", ".join(f"`{o}`" for o in (*p.opts, *p.secondary_opts)), p)
                  for p in options)]  # fmt: skip
        for name, param in rows:
            default = "" if _is_empty(param) else f"`{param.default}`"
            cells = (name, _value(param), default, param.help or NO_MEANING)
            lines.append("| " + " | ".join(text.replace("|", "\\|") for text in cells) + " |")
        lines.append("")
    return "\n".join(lines)


def leaves(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    """Every command below one, with the words that call it."""
    inner = getattr(command, "commands", None)
    if inner is None:
        yield path, command
        return
    for name, part in inner.items():
        yield from leaves(f"{path} {name}", part)


def _is_empty(param: Any) -> bool:
    return param.default is None or param.default is False or callable(param.default)


def _value(param: Any) -> str:
    if getattr(param, "is_flag", False):
        return "flag"
    told = getattr(param, "type_descriptor", None)  # of newer typer; a click type before
    said = param.metavar or (kind(told.annotation) if told else str(param.type.name))
    return f"{said}, may be repeated" if param.multiple else said


def kind(annotation: Any) -> str:
    """An annotation in words; of a list that of its items."""
    if get_origin(annotation) is list:
        return kind(get_args(annotation)[0])
    return KINDS.get(annotation.__name__, annotation.__name__)
