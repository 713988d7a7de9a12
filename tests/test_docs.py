"""What the documentation says of the code is what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sp2dpo_ray.core.arms import parse_arm
from sp2dpo_ray.core.methods import METHODS
from sp2dpo_ray.core.selections import SELECTIONS

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_its_row(name: str) -> None:
    (line,) = (
        line
        for line in (DOCS / "methods.md").read_text().splitlines()
        if line.startswith(f"| `{name}` | {METHODS[name].title} |")
    )
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    row = METHODS[name]
    assert cells[1:3] == [row.title, row.formula]
    assert cells[6:] == [row.source, str(row.verified)]
    for key, option in row.options.items():
        assert f"`{key}` {option.default:g}" in cells[5]


def test_no_row_is_of_something_that_is_gone() -> None:
    text = (DOCS / "methods.md").read_text()
    parts = {part.partition("\n")[0]: part.splitlines() for part in text.split("\n## ")}

    def named(part: str) -> list[str]:
        return [line.split("`")[1] for line in parts[part] if line.startswith("| `")]

    assert named("Losses") == list(METHODS)
    assert named("Selections and curricula") == [f"/{name}" for name in SELECTIONS]


def test_arms_in_the_documentation_exist() -> None:
    text = (DOCS / "methods.md").read_text()
    named = re.findall(r"`(map:[^`<]+|jmamp\+[^`]+)`", text)
    named += re.findall(r"^    <.*\s(\S+)$", text, re.MULTILINE)  # behind the two forms
    assert len(named) >= 9
    for name in named:
        parse_arm(name)


@pytest.mark.parametrize("name", SELECTIONS)
def test_every_selection_has_its_row(name: str) -> None:
    row = SELECTIONS[name]
    expected = (
        f"| `/{name}` | {row.title} | {row.share:g} | {row.source or 'ours'} | {row.verified} |"
    )
    assert expected in (DOCS / "methods.md").read_text()
