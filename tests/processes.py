"""Ending processes the hard way."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import psutil


def kill_tree(pid: int) -> None:
    """SIGKILL for a driver and all of its Ray, as when a machine dies."""
    driver = psutil.Process(pid)
    family = [driver, *driver.children(recursive=True)]
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)
    psutil.wait_procs(family, timeout=20)


def kill_when(ready: Callable[[], object], command: list[str], within_s: float) -> None:
    """Start `python -m sp2dpo_ray <command>` and SIGKILL it with all of its Ray once ready() is
    true."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sp2dpo_ray", *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + within_s
    while not ready() and time.monotonic() < deadline:
        assert process.poll() is None, f"{command[0]} ended before it could be killed"
        time.sleep(0.02)
    kill_tree(process.pid)
    process.wait()


def raylet_of(node: Any) -> int:
    """Process id of the raylet of a node of `ray.cluster_utils.Cluster`."""
    return int(node.all_processes["raylet"][0].process.pid)


def hears_interrupts() -> None:
    """For `preexec_fn`: a shell's background job is born deaf to Ctrl-C, and so are its heirs."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def panel_actors(root: int | None = None) -> list[psutil.Process]:
    """The processes that ask teachers, below one process or on this machine."""
    return actors_called("PanelActor", root)


def actors_called(name: str, root: int | None = None) -> list[psutil.Process]:
    """Ray's worker processes whose title holds a name."""
    everywhere = psutil.Process(root).children(recursive=True) if root else psutil.process_iter()
    found = []
    for process in everywhere:
        with contextlib.suppress(psutil.Error):
            if name in " ".join(process.cmdline()):
                found.append(process)
    return found
