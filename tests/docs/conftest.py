"""A finished demo run in a folder of its own, in which the documentation's commands are run."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from sp2dpo_ray import cli
from tests.conftest import REPOSITORY

ARMS = ["jmamp", "dpo:0.5"]  # one schedule, one global beta: those that README trains by name
SMALL = {"vocabulary": 512, "layers": 2, "hidden": 32, "heads": 2, "steps": 4, "batch": 4}


@dataclass(frozen=True, slots=True)
class Place:
    """Where commands run: `configs/demo.yaml`, `mine.yaml`, `runs/demo`, `runs/mine`.

    log: what the demo run said.
    """

    folder: Path
    log: str


def sp2dpo(*arguments: str) -> tuple[int, str]:
    """A command in this process: its exit code, and what it showed."""
    shown = io.StringIO()
    with contextlib.redirect_stderr(shown), contextlib.redirect_stdout(shown):
        try:
            cli.main(list(arguments))
        except SystemExit as left:
            return int(left.code or 0), shown.getvalue()
    return 0, shown.getvalue()


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@pytest.fixture(scope="session")
def place(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The demo, made with a smaller student and two arms; `mine` and `other` are copies of it."""
    folder = tmp_path_factory.mktemp("docs")
    shutil.copytree(REPOSITORY / "configs", folder / "configs")
    (folder / "cluster").symlink_to(REPOSITORY / "cluster")
    path = folder / "configs" / "demo.yaml"
    content = yaml.safe_load(path.read_text())
    content["student"]["tiny"] = SMALL
    content["train"] |= {"epochs": 1, "pairs_per_step": 64}
    content["sweep"]["arms"] = ARMS
    path.write_text(yaml.safe_dump(content))
    (folder / "mine.yaml").write_text(
        yaml.safe_dump(content | {"run": {"name": "mine", "storage": "runs"}})
    )
    with inside(folder):
        code, log = sp2dpo("run", "configs/demo.yaml")
        assert code == 0, log
        for name in ("mine", "other"):
            shutil.copytree("runs/demo", f"runs/{name}")
        code, said = sp2dpo("audit", "mine.yaml")
        assert code == 0, said
        fill_in(Path("runs/mine/audit/audit.csv"), Path("filled.csv"))
    return Place(folder, log)


def fill_in(sheet: Path, filled: Path) -> None:
    """Somebody who finds every label right."""
    with sheet.open(encoding="utf-8-sig", newline="") as source:
        rows = list(csv.DictReader(source))
    with filled.open("w", encoding="utf-8", newline="") as target:
        writer = csv.DictWriter(target, list(rows[0]))
        writer.writeheader()
        writer.writerows(row | {"verdict": "chosen"} for row in rows)
