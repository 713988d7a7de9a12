"""Secrets stay where they are: a whole run on a cluster leaves neither the teachers' key nor the
cluster's token anywhere, though servers repeat the key and a stage fails with tracebacks on."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.cluster.conftest import ThreeNodes, ended
from tests.fault_server import KEY, serve

pytestmark = [pytest.mark.ray, pytest.mark.slow]
PROVIDERS = ("openai", "gemini", "dashscope")


def test_a_key_and_a_token_are_nowhere(
    cluster: ThreeNodes, demo_config: Path, tmp_path: Path
) -> None:
    draw = random.Random(0)
    healthy = False

    def plan(_: dict[str, Any]) -> str | int:
        if not healthy:
            return "echo"
        return draw.choice(["ok"] * 6 + ["echo", "drop", "garbage"])

    said = []
    with serve(plan) as server:
        teachers = [
            {"name": name, "provider": name, "model": "m", "api_key_env": "TEST_KEY",
             "base_url": server.url_of(name)}
            for name in PROVIDERS
        ]  # fmt: skip
        submit = (
            "submit", "run", str(demo_config), "--address", cluster.url, "--working-dir",
            str(tmp_path), "--debug", "--set", f"teachers={json.dumps(teachers)}",
            "--set", 'sweep.arms=["jmamp"]', "--set", "decoding.retry_base_s=0.01",
        )  # fmt: skip
        (tmp_path / "keys.env").write_text(f"TEST_KEY={KEY}\n")  # lies about, and must not go along
        stopped = cluster.sp2dpo(*submit)
        said += stopped.communicate(timeout=300)
        assert stopped.returncode == 4, said  # no teacher answers
        healthy = True
        again = cluster.sp2dpo(*submit)
        said += again.communicate(timeout=400)
        assert again.returncode == 0, said[-1]
    listed = ended(cluster.sp2dpo("jobs", "list", "--address", cluster.url, "--json"))["jobs"]
    headers = {"Authorization": f"Bearer {cluster.token}"}
    said.append(requests.get(f"{cluster.url}/api/jobs/", headers=headers, timeout=20).text)
    said += [
        requests.get(f"{cluster.url}/api/jobs/{job['job']}/logs", headers=headers, timeout=20).text
        for job in listed
    ]
    assert "sp2dpo-run" in said[-1] or "annotate" in said[-1]  # there is something to search

    hidden = {"key": KEY.encode(), "token": cluster.token.encode()}
    for name, secret in hidden.items():
        for text in said:
            assert secret.decode() not in text, name
    (tmp_path / "keys.env").unlink()
    places = [tmp_path, cluster.folder]
    searched = 0
    for path in (path for place in places for path in place.rglob("*")):
        if path.is_file() and not path.is_symlink():
            content = path.read_bytes()
            searched += 1
            for name, secret in hidden.items():
                assert secret not in content, f"{name} in {path}"
    assert searched > 100  # the run, and the logs of Ray
    echoed = [path for path in (tmp_path / "runs").rglob("*.jsonl") if b"***" in path.read_bytes()]
    assert echoed  # the servers did repeat the key, and the journal holds their words without it
