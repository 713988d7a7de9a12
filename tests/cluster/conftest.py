"""A locked cluster of three nodes in a process of its own, and the commands of a user of it."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.conftest import REPOSITORY
from tests.processes import kill_tree


@dataclass(frozen=True, slots=True)
class ThreeNodes:
    """A cluster in a process of its own, the token that opens it, and the folder of its nodes."""

    process: subprocess.Popen[str]
    url: str
    token: str
    folder: Path

    def lose(self, actor: str) -> str:
        """Kill the node that runs such an actor; its id, or "" if there was none."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(actor + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def sp2dpo(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """A command of a user, who has the cluster's token and no key: those are the nodes'."""
        own = {"RAY_AUTH_TOKEN": self.token, **environment}
        kept = {
            name: value
            for name, value in os.environ.items()
            if name != "TEST_KEY" and not name.startswith("RAY_")
        }
        return subprocess.Popen(
            [sys.executable, "-m", "sp2dpo_ray", *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY,
            env=kept | own,
        )  # fmt: skip


@pytest.fixture(scope="session")
def cluster() -> Iterator[ThreeNodes]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token = secrets.token_hex(32)
    folder = tempfile.mkdtemp(prefix="n-", dir="/tmp")  # a Unix socket's name is short
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # a job's python is the nodes'
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.cluster.nodes", str(port), folder],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env=os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "PATH": path},
        cwd=REPOSITORY,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url.startswith("http://"), "the cluster did not start"
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                if requests.get(f"{url}/api/version", timeout=5).status_code < 500:
                    break
            except requests.RequestException:
                time.sleep(0.5)
        yield ThreeNodes(process, url, token, Path(folder))
    finally:
        kill_tree(process.pid)
        shutil.rmtree(folder, ignore_errors=True)


def ended(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    told: dict[str, Any] = json.loads(out.splitlines()[-1])
    return told
