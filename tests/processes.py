"""Ending processes the hard way."""

from __future__ import annotations

import contextlib
import signal

import psutil


def kill_tree(pid: int) -> None:
    """SIGKILL for a driver and all of its Ray, as when a machine dies."""
    driver = psutil.Process(pid)
    family = [driver, *driver.children(recursive=True)]
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)
    psutil.wait_procs(family, timeout=20)
