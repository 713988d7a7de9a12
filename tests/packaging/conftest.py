"""The distributions, built once from a copy of what git tracks, and a venv with the wheel alone."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.stages.conftest import annotated

__all__ = ["annotated"]

BUILD = "from setuptools import build_meta; print(build_meta.build_{kind}({out!r}))"
UNREACHABLE = ("Temporary failure in name resolution", "NewConnectionError", "Max retries exceeded")


@dataclass(frozen=True, slots=True)
class Built:
    """The files that a release would upload, and the wheel that an sdist gives."""

    sdist: Path
    wheel: Path
    wheel_of_sdist: Path


def build(kind: str, source: Path, out: Path) -> Path:
    """Call the build backend that pyproject.toml names, in a process of its own."""
    out.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", BUILD.format(kind=kind, out=str(out))],
        cwd=source, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Wheel and sdist of the tracked files, and the wheel of the unpacked sdist."""
    folder = tmp_path_factory.mktemp("dist")
    git = ["git", "-C", str(REPOSITORY), "ls-files", "-z"]
    listed = subprocess.run(git, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout: which files belong to the project is not known")
    for name in filter(None, listed.stdout.split("\0")):
        source, copy = REPOSITORY / name, folder / "tree" / name
        if source.is_file():  # else it was removed and not yet committed
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, copy)
    sdist = build("sdist", folder / "tree", folder / "out")
    shutil.rmtree(folder / "tree" / "sp2dpo_ray.egg-info")  # a wheel must not need the sdist's
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    return Built(
        sdist,
        build("wheel", folder / "tree", folder / "out"),
        build("wheel", unpacked, folder / "again"),
    )


@pytest.fixture(scope="session")
def installed(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a venv's commands: the wheel and the base dependencies, nothing else."""
    folder = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=120)
    constraints = str(REPOSITORY / "constraints-cpu.txt")
    done = subprocess.run(
        [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--constraint", constraints,
         str(built.wheel)],
        capture_output=True, text=True, timeout=580,
    )  # fmt: skip
    if done.returncode and any(words in done.stderr for words in UNREACHABLE):
        pytest.skip("no package index can be reached from here")
    assert done.returncode == 0, done.stderr
    yield folder / "bin"
    shutil.rmtree(folder)
