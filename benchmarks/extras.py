"""What each extra of pyproject.toml installs, how much, how long, and whether it can be used.

Run as: python benchmarks/extras.py [EXTRA ...]. Builds the wheel from a copy of the
tracked files, and for each extra makes a clean venv in a temporary folder, installs the wheel with
it under constraints-cpu.txt, and imports what the extra is for. Prints a Markdown table, a row as
soon as it is known; `base` is the wheel alone. Needs a package index; large ones fetch torch.
Invariant: one venv at a time, removed before the next.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
BUILD = "from setuptools import build_meta; print(build_meta.build_wheel({out!r}))"

# what whoever installs an extra wants to run; `all` and `dev` are the sum
STAGE = "sp2dpo_ray.stages."
USES: dict[str, tuple[str, ...]] = {
    "base": ("sp2dpo_ray.cli", STAGE + "prepare", STAGE + "schedule", STAGE + "audit",
             STAGE + "export", "sp2dpo_ray.core.schedule.verify"),
    "hub": ("datasets", "huggingface_hub"),
    "annotate": (STAGE + "annotate", STAGE + "plan", STAGE + "compact", STAGE + "doctor",
                 "sp2dpo_ray.teachers.openai_compatible", "sp2dpo_ray.teachers.gemini",
                 "sp2dpo_ray.teachers.dashscope"),
    "train": (STAGE + "student", STAGE + "reference", STAGE + "train",
              "sp2dpo_ray.train.loop", "torch.utils.tensorboard"),
    "tune": (STAGE + "sweep", "sp2dpo_ray.tune.search", "optuna"),
    "evaluate": (STAGE + "generate", STAGE + "evaluate", "alpaca_eval.metrics",
                 "lm_eval.tasks.ifeval.utils"),
    "distill": (STAGE + "distill", "sp2dpo_ray.distill.light", "sp2dpo_ray.distill.teacher"),
    "local": ("sp2dpo_ray.hosted.transformers_model", "sp2dpo_ray.hosted.constrained"),
    "lab": (STAGE + "lab", "sp2dpo_ray.lab.figure"),
    "deepspeed": ("deepspeed",),
    "quantized": ("bitsandbytes",),
    "report": (STAGE + "report", "sp2dpo_ray.report.page", STAGE + "tables"),
    "jobs": ("ray.job_submission", "sp2dpo_ray.cluster.jobs"),
}  # fmt: skip
# a part of a whole: what it adds to another extra, without which it is of no use
WITH = {"deepspeed": "train", "quantized": "train"}


def wheel_in(folder: Path) -> Path:
    """The wheel of what git tracks, as it lies here."""
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / "tree" / name)
    done = subprocess.run(
        [sys.executable, "-c", BUILD.format(out=str(folder))],
        cwd=folder / "tree", capture_output=True, text=True, check=True,
    )  # fmt: skip
    return folder / done.stdout.splitlines()[-1]


def size_of(folder: Path) -> float:
    """Megabytes of all files below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(path.stat().st_size for path in files) / 1e6


def imported(python: Path, modules: tuple[str, ...]) -> str:
    """`yes`, or the first module that cannot be imported and why; each in a process of its own."""
    for module in modules:
        done = subprocess.run(
            [python, "-c", f"import {module}"], capture_output=True, text=True, cwd="/"
        )
        if done.returncode:
            return f"no: {module}: {done.stderr.strip().splitlines()[-1]}"
    return "yes"


def row_of(extra: str, wheel: Path, folder: Path, modules: tuple[str, ...]) -> str:
    """Install one extra into a clean venv, look at it, and remove it."""
    venv = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    before, python = size_of(venv), venv / "bin" / "python"
    names = [name for name in (extra, WITH.get(extra)) if name and name != "base"]
    what = f"{wheel}[{','.join(names)}]" if names else str(wheel)
    pip = [python, "-m", "pip"]
    constraints = ["--constraint", str(ROOT / "constraints-cpu.txt")]
    started = time.perf_counter()
    done = subprocess.run(
        [*pip, "install", "--quiet", *constraints, what], capture_output=True, text=True
    )
    seconds = time.perf_counter() - started
    listed = subprocess.run([*pip, "list", "--format", "json"], capture_output=True, text=True)
    packages = len(json.loads(listed.stdout)) - 1  # without pip itself
    if done.returncode:
        told = "not installed: " + (done.stderr.strip().splitlines() or ["?"])[-1]
    else:
        told = imported(python, modules)
    size = size_of(venv) - before
    shutil.rmtree(venv)
    return f"| `{'+'.join(names) or extra}` | {packages} | {size:,.0f} | {seconds:.0f} | {told} |"


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = ["base", *project["optional-dependencies"]]
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("extras", nargs="*", metavar="EXTRA", help=f"of {', '.join(extras)}")
    wanted = parser.parse_args().extras or extras
    if unknown := sorted(set(wanted) - set(extras)):
        parser.error(f"pyproject.toml has no extras {unknown}")
    every = tuple(name for part in USES if part not in WITH for name in USES[part])
    with tempfile.TemporaryDirectory(prefix="sp2dpo-extras-") as name:
        folder = Path(name)
        wheel = wheel_in(folder)
        print("| extra | packages | MB | seconds | import ok |\n|---|---|---|---|---|", flush=True)
        for extra in wanted:
            print(row_of(extra, wheel, folder, USES.get(extra, every)), flush=True)


if __name__ == "__main__":
    main()
