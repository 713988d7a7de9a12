"""What the documentation says of the code is what the code says."""

from __future__ import annotations

from pathlib import Path

import pytest

from sp2dpo_ray.core.methods import METHODS

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_its_row(name: str) -> None:
    (line,) = (
        line
        for line in (DOCS / "methods.md").read_text().splitlines()
        if line.startswith(f"| `{name}` |")
    )
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    row = METHODS[name]
    assert cells[1:3] == [row.title, row.formula]
    assert cells[6:] == [row.source, str(row.verified)]
    for key, option in row.options.items():
        assert f"`{key}` {option.default:g}" in cells[5]


def test_no_row_is_of_something_that_is_gone() -> None:
    lines = (DOCS / "methods.md").read_text().splitlines()
    named = {line.split("`")[1] for line in lines if line.startswith("| `")}
    assert named == set(METHODS)
