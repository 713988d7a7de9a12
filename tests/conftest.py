"""Shared fixtures: pairs, the real data where it is present, one Ray cluster, one student."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.fault_server import KEY

# how long an example takes says nothing on a machine that others use too
settings.register_profile("project", deadline=None)
settings.load_profile("project")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["TEST_KEY"] = KEY  # before Ray starts: its workers inherit this environment

REPOSITORY = Path(__file__).parent.parent
REAL_DATA = REPOSITORY.parent / "shared" / "data"
SECRET = "canary-secret-key"  # of the object store  # pragma: allowlist secret
DEMO_PAIRS = REPOSITORY / "configs" / "demo" / "pairs.jsonl"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real pairs; tests that need it are skipped elsewhere."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"real pairs are not part of the project: no folder {REAL_DATA}")
    return REAL_DATA


@pytest.fixture(scope="session")
def demo_rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in DEMO_PAIRS.read_text().splitlines()]


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local Ray for all tests that need one."""
    import ray

    ray.init(
        address="local",  # not whatever cluster somebody left on this machine
        num_cpus=2,
        object_store_memory=400 << 20,
        include_dashboard=False,
        logging_level="ERROR",
        log_to_driver=False,
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def tiny_student(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A very small untaught student made from the demo pairs; a StudentRef."""
    from sp2dpo_ray.config import TinySection
    from sp2dpo_ray.core.pairs import Pair, read_pairs
    from sp2dpo_ray.core.sources import read_source
    from sp2dpo_ray.modeling.student import find_student
    from sp2dpo_ray.modeling.tiny import make_tiny_student

    folder = tmp_path_factory.mktemp("student")
    table = read_source(str(DEMO_PAIRS), split=None, revision=None)
    pairs = [pair for pair in read_pairs(table) if isinstance(pair, Pair)]
    options = TinySection(vocabulary=512, layers=2, hidden=32, heads=2, steps=2, batch=4)
    make_tiny_student(pairs, options, folder)
    return find_student(str(folder), None)


@pytest.fixture
def demo_config(tmp_path: Path) -> Path:
    """A small configuration on the demo pairs that trains in seconds."""
    path = tmp_path / "config.yaml"
    path.write_text(
        f"""
run: {{name: test, storage: {tmp_path}/runs}}
data: {{source: {DEMO_PAIRS}, limit: 40, eval_fraction: 0.3}}
teachers:
  - {{name: alba, provider: offline, model: rules, options: {{persona: balanced}}}}
  - {{name: bruno, provider: offline, model: rules, options: {{persona: strict}}}}
student:
  model: tiny
  tiny: {{vocabulary: 512, layers: 2, hidden: 32, heads: 2, steps: 4, batch: 4}}
train: {{max_length: 256, max_prompt_length: 128, learning_rate: 1.0e-3, pairs_per_step: 8,
  tokens_per_batch: 2048, precision: fp32, workers: 2, gpus_per_worker: 0}}
sweep: {{arms: ["jmamp", "dpo:0.1"]}}
"""
    )
    return path


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The URI of a bucket on a server of its own."""
    from moto.server import ThreadedMotoServer

    patch = pytest.MonkeyPatch()
    patch.setenv("AWS_ACCESS_KEY_ID", "test")
    patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    patch.setenv("NO_PROXY", "127.0.0.1")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    import boto3

    boto3.client(
        "s3", endpoint_url=f"http://127.0.0.1:{port}", region_name="us-east-1"
    ).create_bucket(Bucket="pairs")
    query = f"?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
    yield "s3://pairs/{}" + query
    server.stop()
    patch.undo()
