"""Build hook of the documentation: the reference of every section and key of the configuration.

In: the models that read the file. Out: `reference/configuration.md`, made at build time. Invariant:
every key of every model stands there once, and one without a meaning says so.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the package of this very checkout

from sp2dpo_ray.config import Config  # noqa: E402
from sp2dpo_ray.config.section import Section  # noqa: E402

NO_MEANING = "(not described)"
BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below",
          "multiple_of": "a multiple of", "min_length": "items: at least"}  # fmt: skip
KINDS = {str: "text", int: "whole number", float: "number", bool: "true or false", dict: "mapping",
         Any: "anything", type(None): "null"}  # fmt: skip


def on_files(files: Files, config: Any) -> Files:
    """Add the page."""
    files.append(File.generated(config, "reference/configuration.md", content=configuration()))
    return files


def configuration() -> str:
    """The page of every section and key."""
    lines = [
        "# Configuration",
        "",
        "Every section and key, made from the models that read the file. One YAML file holds the "
        "whole configuration; `--set section.key=value` overrides one key on the command line, "
        "`--set teachers.0.limits.rpm=100` one of a list. An unknown key and a value out of range "
        "are refused with their dotted name. Only `data.source` and `teachers` must be given.",
        "",
        "In the names below `[]` stands for an entry of a list, `<name>` for a key of your own.",
        "",
    ]
    for path, model in sections():
        depth = "###" if "." in path else "##"
        lines += [f"{depth} `{path}` {{ #{anchors()[model]} }}" if path else "## Sections", ""]
        if said := model.__dict__.get("__doc__"):
            lines += [_one_line(said), ""]
        lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
        meanings = described(model)
        for name, field in model.model_fields.items():
            dotted = f"{path}.{name}" if path else name
            said = (meanings.get(name), _of_section(field, dotted))
            meaning = " ".join(text for text in said if text) or NO_MEANING
            cells = (f"`{dotted}`", _type(field), _default(field), meaning)
            lines.append("| " + " | ".join(_cell(text) for text in cells) + " |")
        lines.append("")
    return "\n".join(lines)


def sections() -> list[tuple[str, type[Section]]]:
    """Every model with the dotted name under which it stands; each once, where it comes first."""
    found: dict[type[Section], str] = {}

    def walk(path: str, model: type[Section]) -> None:
        if model in found:
            return
        found[model] = path
        for name, field in model.model_fields.items():
            for tail, inner in models_in(field.annotation):
                walk(f"{path}.{name}{tail}".lstrip("."), inner)

    walk("", Config)
    return [(path, model) for model, path in found.items()]


def models_in(annotation: Any) -> Iterator[tuple[str, type[Section]]]:
    """The models in an annotation, each with `[]` or `.<name>` for the container around it."""
    if inspect.isclass(annotation) and issubclass(annotation, Section):
        yield "", annotation
        return
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    tail = "[]" if origin is tuple else ".<name>" if _is_mapping(origin) else ""
    for part in inner:
        for more, model in models_in(part):
            yield tail + more, model


def described(model: type[BaseModel]) -> dict[str, str]:
    """The text below each field of a model's source."""
    found = {}
    (tree,) = ast.parse(inspect.getsource(model)).body
    assert isinstance(tree, ast.ClassDef)
    for field, below in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
            text = ast.literal_eval(below.value) if isinstance(below.value, ast.Constant) else ""
            found[ast.unparse(field.target)] = _one_line(str(text))
    return found


def anchors() -> dict[type[Section], str]:
    """The id of each section's heading; two models at one place have their names behind it."""
    found: dict[type[Section], str] = {}
    for path, model in sections():
        name = re.sub(r"\W+", "-", path).strip("-")
        own = f"{name}-{model.__name__.removesuffix('Section').lower()}"
        found[model] = own if name in found.values() else name
    return found


def _of_section(field: FieldInfo, dotted: str) -> str:
    """Where the keys of a nested section are told; '' for a plain value."""
    known = {model: path for path, model in sections()}
    inner = [model for _, model in models_in(field.annotation)]
    places = [known[model] for model in inner]
    if not places:
        return ""
    names = " or ".join(f"[`{known[model]}`](#{anchors()[model]})" for model in inner)
    below = {dotted, f"{dotted}[]", f"{dotted}.<name>"}
    return f"See {names}." if below.issuperset(places) else f"Its keys are those of {names}."


def _is_mapping(origin: Any) -> bool:
    return inspect.isclass(origin) and issubclass(origin, Mapping)


def _type(field: FieldInfo) -> str:
    rules = [
        f"{said} {getattr(rule, name)}"
        for rule in field.metadata
        for name, said in BOUNDS.items()
        if getattr(rule, name, None) is not None
    ]
    rules += [f"matches `{rule.pattern}`" for rule in field.metadata if hasattr(rule, "pattern")]
    return ", ".join([kind(field.annotation), *rules])


def kind(annotation: Any) -> str:
    """An annotation in words."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        rules = FieldInfo.from_annotation(annotation)
        return _type(rules)
    if origin is typing.Literal:
        return " or ".join(f"`{value}`" for value in inner)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(kind(part) for part in inner))
    if origin is tuple:
        if inner[-1] is Ellipsis:
            return f"list of {kind(inner[0])}"
        return "[" + ", ".join(kind(part) for part in inner) + "]"
    if _is_mapping(origin):
        return f"mapping from {kind(inner[0])} to {kind(inner[1])}"
    if inspect.isclass(annotation) and issubclass(annotation, Section):
        return "section"
    if inspect.isclass(annotation) and issubclass(annotation, Enum):
        return " or ".join(f"`{value.value}`" for value in annotation)
    return KINDS.get(annotation) or getattr(annotation, "__name__", str(annotation))


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "must be given"
    return "" if isinstance(value, BaseModel) else f"`{plain_value(value)}`"


def plain_value(value: Any) -> str:
    """A value as YAML would have it on one line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple):
        return "[" + ", ".join(plain_value(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {plain_value(item)}" for k, item in value.items()) + "}"
    if isinstance(value, float) and "e" in repr(value):
        mantissa, _, exponent = repr(value).partition("e")
        return f"{float(mantissa)}e{int(exponent)}"  # YAML wants the dot
    return str(value) or '""'


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _one_line(text: str) -> str:
    return " ".join(text.split())
