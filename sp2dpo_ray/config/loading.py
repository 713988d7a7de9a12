"""Reading the configuration: a YAML file, overrides, and messages that name the dotted key.

In: a path and `key=value` overrides. Out: a `Config`, or a ConfigError with every broken rule.
"""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from sp2dpo_ray.config.sections import Config
from sp2dpo_ray.errors import ConfigError

MERGE = "tag:yaml.org,2002:merge"  # the key <<


def load_config(path: str, overrides: tuple[str, ...] = ()) -> Config:
    """Read a YAML file, apply `a.b=value` overrides, and check every rule.

    Raises ConfigError that lists each broken rule with its dotted key.
    """
    try:
        content = _read(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no configuration file {path!r} (looked in {Path.cwd()})") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must hold a mapping of sections, see configs/demo.yaml")
    for override in overrides:
        _override(content, override)
    try:
        return Config.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{path}: " + "\n".join(_rules(error))) from None


class _Loader(yaml.SafeLoader):
    """YAML's own, but a key that stands twice is refused: the first would be ignored."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == MERGE:
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _read(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)  # noqa: S506: it is a safe one


def _override(content: dict[str, Any], text: str) -> None:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set {text!r}: must have the form section.key=value")
    *path, last = key.split(".")
    place: Any = content
    for name in path:
        child = place[int(name)] if _is_index(place, name) else place.setdefault(name, {})
        if child is None and isinstance(place, dict):
            child = place[name] = {}
        if not isinstance(child, dict | list):
            raise ConfigError(f"--set {key}: {name!r} is a value, not a section")
        place = child
    try:
        parsed = _read(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {key}: {value!r} is not a YAML value: {error}") from error
    if isinstance(place, list):
        _is_index(place, last)
        place[int(last)] = parsed
    else:
        place[last] = parsed


def _is_index(place: Any, name: str) -> bool:
    if not isinstance(place, list):
        return False
    if not name.isdecimal() or int(name) >= len(place):
        raise ConfigError(f"--set: {name!r} is no place in a list of {len(place)}; the first is 0")
    return True


def _rules(error: ValidationError) -> list[str]:
    lines = []
    for item in error.errors():
        key = ""
        for part in item["loc"]:
            key += f"[{part}]" if isinstance(part, int) else f".{part}" if key else str(part)
        if item["type"] == "extra_forbidden":
            lines.append(f"{key}: unknown key")
        elif item["type"] == "missing":
            lines.append(f"{key}: must be given")
        else:
            rule = item["msg"].removeprefix("Value error, ")
            value = "" if item["type"] == "value_error" else f", got {item['input']!r}"
            lines.append(f"{key}: {rule}{value}" if key else f"{rule}")
    return lines
