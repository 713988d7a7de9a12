"""What a release would upload: the right files and no others, and a wheel that works alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
import tomllib
import zipfile
from collections.abc import Callable
from email.parser import Parser
from pathlib import Path

import pytest

from sp2dpo_ray import __version__, load_schedule
from sp2dpo_ray.run import Run
from sp2dpo_ray.stages.schedule import schedule
from tests.conftest import REPOSITORY
from tests.packaging.conftest import Built

pytestmark = pytest.mark.slow

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
NOT_OURS = ("tests", "runs", "examples", "benchmarks", "docs", "configs", "jobs", "build")
# stages whose packages the base leaves out, and the extra that brings them
MISSING = {
    "student": "train", "annotate": "annotate", "distill": "distill", "report": "report",
    "train": "train",
}  # fmt: skip


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def metadata_of(wheel: Path) -> str:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        return archive.read(name).decode()


def test_the_wheel_holds_every_file_of_the_package(built: Built) -> None:
    tracked = subprocess.run(
        ["git", "-C", str(REPOSITORY), "ls-files", "sp2dpo_ray"],
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    expected = {name for name in tracked if (REPOSITORY / name).is_file()}
    assert len([name for name in expected if not name.endswith(".py")]) > 12  # texts, pages, tables
    package = {name for name in names_in(built.wheel) if ".dist-info/" not in name}
    assert package == expected


def test_nothing_else_gets_in(built: Built) -> None:
    tops = {name.partition("/")[0] for name in names_in(built.wheel)}
    assert tops == {"sp2dpo_ray", f"sp2dpo_ray-{__version__}.dist-info"}
    with tarfile.open(built.sdist) as archive:
        members = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "pyproject.toml", "PKG-INFO"} <= members
    assert not {name.partition("/")[0] for name in members} & set(NOT_OURS)


def test_the_metadata_is_that_of_the_project(built: Built) -> None:
    told = Parser().parsestr(metadata_of(built.wheel))
    assert (told["Name"], told["Version"]) == (PROJECT["name"], __version__)
    assert told["License-Expression"] == "Apache-2.0"
    assert set(told.get_all("Provides-Extra", [])) == set(PROJECT["optional-dependencies"])
    base = [line for line in told.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert len(base) == len(PROJECT["dependencies"])
    assert (REPOSITORY / "README.md").read_text().strip() in str(told.get_payload())


def test_a_wheel_made_from_the_sdist_is_the_same(built: Built) -> None:
    one, other = (
        {info.filename: (info.file_size, info.CRC) for info in zipfile.ZipFile(path).infolist()}
        for path in (built.wheel, built.wheel_of_sdist)
    )
    record = f"sp2dpo_ray-{__version__}.dist-info/RECORD"  # SHA-256 of all other files
    assert record in one
    assert one == other


def command(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The wheel's own `sp2dpo`, away from the repository."""
    outside = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(
        [installed / arguments[0], *arguments[1:]],
        capture_output=True, text=True, timeout=120, cwd=installed, env=outside,
    )  # fmt: skip


def test_the_base_is_small(installed: Path) -> None:
    listed = command(installed, "python", "-m", "pip", "list", "--format", "json")
    there = {row["name"].lower() for row in json.loads(listed.stdout)}
    assert not there & {"ray", "torch", "transformers", "datasets", "openai", "pandas"}
    assert command(installed, "python", "-m", "pip", "check").returncode == 0


def test_the_command_line_works(installed: Path) -> None:
    assert command(installed, "sp2dpo", "version").stdout.strip() == __version__
    shown = command(installed, "sp2dpo", "--help")
    assert shown.returncode == 0
    assert "prepare" in shown.stdout
    where = command(installed, "python", "-c", "import sp2dpo_ray; print(sp2dpo_ray.__file__)")
    assert Path(where.stdout.strip()).is_relative_to(installed.parent)


def test_base_stages_run_on_the_base_alone(installed: Path, demo_config: Path) -> None:
    done = command(installed, "sp2dpo", "prepare", str(demo_config), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["pairs"] == 28


def test_a_schedule_made_elsewhere_is_read(
    installed: Path, annotated: Callable[..., Run], tmp_path: Path
) -> None:
    run = annotated()
    schedule(run)
    folder = shutil.copytree(run.path("schedule"), tmp_path / "carried")
    code = (
        "from sp2dpo_ray import load_schedule\n"
        f"table = load_schedule({str(folder)!r}, ['beta_annotators_mean_ens', 'category'])\n"
        "print(table.num_rows, table['beta_annotators_mean_ens'].to_pylist())"
    )
    read = command(installed, "python", "-c", code)
    ours = load_schedule(folder, ["beta_annotators_mean_ens"])["beta_annotators_mean_ens"]
    assert read.stdout.strip() == f"28 {ours.to_pylist()}", read.stderr
    verified = command(installed, "sp2dpo", "verify", str(folder))
    assert verified.returncode == 0, verified.stderr


@pytest.mark.parametrize(("stage", "extra"), MISSING.items())
def test_a_stage_without_its_packages_names_the_extra(
    installed: Path, demo_config: Path, stage: str, extra: str
) -> None:
    done = command(installed, "sp2dpo", stage, str(demo_config))
    assert done.returncode == 2, done.stderr
    assert f"pip install 'sp2dpo-ray[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr
