"""The documentation site: it builds without a warning, loads nothing from elsewhere, and its
reference has every key and every command."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config as load_site
from typer.main import get_command

from sp2dpo_ray.cli.commands import app
from sp2dpo_ray.config import Config, load_config
from sp2dpo_ray.config.section import Section
from tests.browsing import contrast
from tests.conftest import REPOSITORY

NOT_DESCRIBED = "(not described)"
LOADING = {"script": "src", "img": "src", "iframe": "src", "source": "src", "audio": "src",
           "video": "src", "embed": "src", "object": "data", "link": "href"}  # fmt: skip
OUTSIDE = re.compile(r"^(?:https?:)?//")
MADE = ("reference/configuration.md", "reference/cli.md")


class Loads(HTMLParser):
    """What a page loads by itself; links that a reader follows are none of it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.ids: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.ids.add(values.get("id") or "")
        if "mermaid" in (values.get("class") or ""):
            self.found.append("https://: the theme fetches a program for diagrams")
        self.found += [values.get(LOADING.get(tag, "")) or "", *re.findall(
            r"url\(['\"]?([^'\")]+)", values.get("style") or "")]  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, list[str]]:
    """Folder, configuration and warnings of a strict build."""
    folder = tmp_path_factory.mktemp("site")
    said: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    keep = Keep(logging.WARNING)
    logging.getLogger("mkdocs").addHandler(keep)
    patch = pytest.MonkeyPatch()
    patch.setenv("NO_MKDOCS_2_WARNING", "1")
    try:
        config = load_site(str(REPOSITORY / "mkdocs.yml"), site_dir=str(folder))
        config.plugins.on_startup(command="build", dirty=False)
        build(config)
    finally:
        logging.getLogger("mkdocs").removeHandler(keep)
        patch.undo()
    return folder, config, said


def nav_of(entries: Any) -> Iterator[str]:
    for entry in entries.values() if isinstance(entries, dict) else entries:
        if isinstance(entry, str):
            yield entry
        else:
            yield from nav_of(entry)


def test_it_is_strict_and_nothing_is_warned_of(site: tuple[Path, Any, list[str]]) -> None:
    _, config, said = site
    assert config.strict
    assert said == []


def test_every_page_of_the_navigation_is_there(site: tuple[Path, Any, list[str]]) -> None:
    folder, config, _ = site
    pages = list(nav_of(config.nav))
    assert len(pages) == len(set(pages)) > 20
    for page in pages:
        assert page in MADE or (REPOSITORY / "docs" / page).is_file(), page
        assert (folder / page).with_suffix(".html").is_file(), page
    assert not (folder / "hooks").exists()


def test_nothing_is_loaded_from_elsewhere(site: tuple[Path, Any, list[str]]) -> None:
    folder, _, _ = site
    pages = sorted(folder.rglob("*.html"))
    assert pages
    for path in pages:
        loads = Loads()
        loads.feed(path.read_text(encoding="utf-8"))
        for address in loads.found:
            assert not OUTSIDE.match(address), f"{path.name} loads {address}"
            local = address.partition("?")[0].partition("#")[0]
            if local and not local.startswith("data:"):
                root = folder if local.startswith("/") else path.parent
                assert (root / local.lstrip("/")).exists(), f"{path.name} loads {address}"
    for path in folder.rglob("*.css"):
        text = path.read_text(encoding="utf-8")
        for address in re.findall(r"(?:url\(|@import\s+)['\"]?([^'\")]+)", text):
            assert not OUTSIDE.match(address), f"{path.name} loads {address}"


def text_of(site: tuple[Path, Any, list[str]], name: str) -> str:
    return (site[0] / "reference" / name).read_text(encoding="utf-8")


def dotted(value: Any, path: str = "") -> Iterator[str]:
    """The keys of a resolved configuration, entries of lists as `[]`."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from dotted(inner, f"{path}.{name}".lstrip("."))
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for inner in value:
            yield from dotted(inner, f"{path}[]")
    else:
        yield path


def test_every_key_of_a_resolved_configuration_is_there(
    site: tuple[Path, Any, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    text = text_of(site, "configuration.html")
    resolved = load_config("configs/demo.yaml").resolved
    open_ended = ("teachers[].options",)
    for name in dotted(resolved):
        if not name.startswith(open_ended):
            assert f"<code>{name}</code>" in text, name


def sections_below(model: type[Section]) -> Iterator[type[Section]]:
    for inner in model.__subclasses__():
        yield inner
        yield from sections_below(inner)


def test_every_field_of_every_section_is_there(site: tuple[Path, Any, list[str]]) -> None:
    text = text_of(site, "configuration.html")
    ours = [m for m in sections_below(Section) if m.__module__.startswith("sp2dpo_ray.config")]
    assert len(ours) > 25
    for model in ours:
        start = "" if model is Config else r"[^<]*\."
        for name in model.model_fields:
            assert re.search(rf"<code>{start}{name}</code>", text), f"{model.__name__}.{name}"


def test_every_key_has_a_meaning(site: tuple[Path, Any, list[str]]) -> None:
    for name in ("configuration.html", "cli.html"):
        rows = re.findall(r"<tr>.*?</tr>", text_of(site, name), re.DOTALL)
        bare = [re.sub(r"<[^>]+>|\s+", " ", row) for row in rows if NOT_DESCRIBED in row]
        assert not bare, bare


def words_of(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    if not (inner := getattr(command, "commands", None)):
        yield path, command
        return
    for name, part in inner.items():
        yield from words_of(part, f"{path} {name}")


def test_every_command_and_option_is_there(site: tuple[Path, Any, list[str]]) -> None:
    parts = text_of(site, "cli.html").split("<h2 ")
    found = {re.sub(r"<[^>]+>", "", part).partition(">")[2].split("&para;")[0]: part
             for part in parts[1:]}  # fmt: skip
    expected = dict(words_of(get_command(app), "sp2dpo"))
    assert len(expected) > 25
    for path, command in expected.items():
        part = found[path]
        for param in command.params:
            names = param.opts if param.opts[0].startswith("-") else [param.name.upper()]
            for name in names:
                assert f"<code>{name}" in part, f"{path} {name}"


@pytest.mark.parametrize("scheme", ["LIGHT", "DARK"])
def test_the_picture_of_the_parts_can_be_read(scheme: str) -> None:
    sys.path.insert(0, str(REPOSITORY / "docs" / "hooks"))
    import house

    box, _, name, what = getattr(house, scheme)
    assert f"rect {{ fill: {box};" in house.picture()
    assert min(contrast(name, box), contrast(what, box)) >= 4.5
