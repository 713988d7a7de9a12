"""Holds the shape of the house: who may import whom, how long files are, what `core` leaves out."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "sp2dpo_ray"
DOCS = ROOT.parent / "docs"
FILES = sorted(ROOT.rglob("*.py"))

# imports run from right to left only; names of one rank do not see each other
RANKS: tuple[frozenset[str], ...] = (
    frozenset({"__init__"}),
    frozenset({"errors"}),
    frozenset({"core"}),
    frozenset({"config", "console"}),
    frozenset({"objectives", "teachers", "modeling", "room"}),
    frozenset({"annotate", "reference", "train", "distill", "hosted"}),
    frozenset({"evaluate"}),
    frozenset({"tune", "lab"}),
    frozenset({"report", "cluster"}),
    frozenset({"run"}),
    frozenset({"stages"}),
    frozenset({"cli"}),
    frozenset({"__main__"}),
)
# the one step within a rank: a model's forward pass ends in log-probabilities
SAME_RANK = {("modeling", "objectives")}
PUBLIC = "sp2dpo_ray.core.schedule.published"
RAY_ALLOWED = {
    "room",
    "annotate",
    "reference",
    "train",
    "tune",
    "distill",
    "evaluate",
    "lab",
    "stages",
    "cluster",
}
TORCH_FREE = {
    "errors",
    "core",
    "config",
    "console",
    "teachers",
    "annotate",
    "run",
    "cluster",
    "cli",
}
LONGEST = 400


def room(path: Path) -> str:
    """The top-level part of the package that a file belongs to."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def rank(name: str) -> int:
    return next(level for level, names in enumerate(RANKS) if name in names)


def imports(path: Path) -> set[str]:
    """Full names of the modules that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    ours = room(path)
    for module in imports(path):
        parts = module.split(".")
        if parts[0] == "sp2dpo_ray" and len(parts) > 1 and (ROOT / parts[1]).with_suffix("").name:
            theirs = parts[1]
            if theirs == ours or theirs == "__version__":
                continue
            allowed = rank(theirs) < rank(ours) or (ours, theirs) in SAME_RANK
            # the one public name, looked up when it is asked for
            allowed |= path == ROOT / "__init__.py" and module.startswith(PUBLIC)
            assert allowed, f"{path.relative_to(ROOT)} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_heavy_packages_stay_where_they_belong(path: Path) -> None:
    tops = {module.split(".")[0] for module in imports(path)}
    if room(path) not in RAY_ALLOWED:
        assert "ray" not in tops
    if room(path) in TORCH_FREE:
        assert not tops & {"torch", "transformers", "peft"}
    if room(path) == "objectives":
        assert tops <= {"torch", "sp2dpo_ray", "__future__", "collections", "dataclasses"}
    if room(path) == "core":
        assert "sp2dpo_ray.config" not in imports(path)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_open_with_a_header_and_stay_readable(path: Path) -> None:
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text)), "a file says what it is"
    assert len(text.splitlines()) <= LONGEST
    assert path.stem not in {"utils", "helpers", "common", "misc"}


def test_core_imports_without_ray_torch_or_sdks() -> None:
    modules = [
        ".".join(("sp2dpo_ray", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(
            ".__init__"
        )
        for path in FILES
        if room(path) in {"core", "config", "cli", "run"}
    ]
    heavy = ("ray", "torch", "transformers", "peft", "openai", "datasets", "pandas")
    code = (
        f"import sys\nfor name in {modules}: __import__(name)\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_each_stage_has_a_job() -> None:
    from sp2dpo_ray.stages import STAGES

    jobs = {path.stem for path in (ROOT.parent / "jobs").glob("*.py")}
    assert jobs == {*STAGES, "run"}


def test_the_picture_shows_the_floors_that_the_imports_have() -> None:
    sys.path.insert(0, str(DOCS / "hooks"))
    from house import FLOORS, picture

    drawn = [frozenset(name for name, _ in rooms) for rooms in FLOORS]
    assert drawn == [names for names in reversed(RANKS) if not min(names).startswith("__")]
    assert (DOCS / "architecture.svg").read_text(encoding="utf-8") == picture()
