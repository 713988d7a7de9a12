"""The images: a linter's view, and that they are made of what the project pins."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
IMAGES = sorted((ROOT / "cluster" / "images").glob("*.Dockerfile"))
each = pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.stem)
LINTER = shutil.which("hadolint", path=str(Path(sys.executable).parent))


@each
@pytest.mark.skipif(LINTER is None, reason="hadolint is not installed")
def test_the_linter_has_nothing_to_say(path: Path) -> None:
    done = subprocess.run([str(LINTER), str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.skipif(LINTER is None, reason="hadolint is not installed")
def test_the_linter_would_say_something(tmp_path: Path) -> None:
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM debian\nRUN cd /tmp && pip install torch\n")
    assert subprocess.run([str(LINTER), str(bad)], capture_output=True, check=False).returncode


@each
def test_what_it_copies_is_there_and_goes_with_the_build(path: Path) -> None:
    sent = (ROOT / ".dockerignore").read_text().splitlines()
    for line in re.findall(r"^COPY (.*)$", path.read_text(), re.MULTILINE):
        for name in line.split()[:-1]:
            assert (ROOT / name).exists()
            assert f"!{name}" in sent
    assert sent[0] == "*"  # nothing else: no keys, no runs


@each
def test_versions_are_pinned_and_nobody_is_root(path: Path) -> None:
    text = path.read_text()
    for install in re.findall(r"pip install (?:[^\n\\]|\\\n)*", text):
        assert "--constraint" in install or "==" in install, install
    assert re.findall(r"^USER (.*)$", text, re.MULTILINE) == ["1000"]
    assert "RAY_AUTH_MODE=token" in text


@each
def test_the_launchers_token_lies_where_ray_looks(path: Path) -> None:
    """`ray up` mounts `~/...` below the HOME of the image's environment, else below /root."""
    text = path.read_text()
    (home,) = re.findall(r"^ENV HOME=(.*)$", text, re.MULTILINE)
    (name,) = re.findall(r"useradd --create-home --uid 1000 (\w+)", text)
    assert home == f"/home/{name}"
    # made by the user: docker would make it as root for the mount
    assert f"USER 1000\nRUN mkdir -p {home}/.ray\n" in text


def test_the_gpu_image_asks_for_the_driver_and_the_other_does_not() -> None:
    """Ray's launcher gives `--runtime=nvidia` and nothing else; an image that names no device gets
    none."""
    asked = {path.stem: re.findall(r"NVIDIA_(\w+)=(\S+)", path.read_text()) for path in IMAGES}
    assert asked == {
        "cpu": [],
        "gpu": [("VISIBLE_DEVICES", "all"), ("DRIVER_CAPABILITIES", "compute,utility")],
    }


def test_all_nodes_have_one_python() -> None:
    bases = {re.findall(r"^FROM (\S+)$", path.read_text(), re.MULTILINE)[0] for path in IMAGES}
    assert len(IMAGES) == 2
    assert len(bases) == 1


def test_the_extras_exist() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    for path in IMAGES:
        for extras in re.findall(r"(?:\.\[|EXTRAS=)([a-z,]+)", path.read_text()):
            for extra in extras.split(","):
                assert re.search(rf"^{extra} = \[", project, re.MULTILINE)
