"""A script: train on a cluster that shrinks in the middle.

Run as: python -m tests.train.node_loss [--notice] CONFIG OVERRIDE... The head has no core, two
nodes have one each, and one is killed after the first checkpoint. With --notice its loss is told
beforehand, after the first steps, as a spot machine's is. Prints the stage's summary as JSON, with
the number of workers that were killed, the step of the checkpoint before, and the fewest steps that
the metrics held afterwards.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from contextlib import redirect_stdout, suppress
from typing import Any

import psutil
import ray
from ray.cluster_utils import Cluster

from sp2dpo_ray.config import load_config
from sp2dpo_ray.run import Run
from sp2dpo_ray.stages import STAGES
from tests.processes import actors_called, raylet_of

NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 150 << 20}
STEPS_BEFORE = 4
NOTICE_S = 8


def train_with_a_loss(notice: bool) -> dict[str, Any]:
    head = NODE | {"num_cpus": 0, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = [cluster.add_node(**NODE) for _ in range(2)]
    ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
    config, *overrides = sys.argv[2:] if notice else sys.argv[1:]
    run = Run(load_config(config, tuple(overrides)))
    metrics = run.path("train", "jmamp", "metrics.jsonl")
    workers: list[int] = []
    seen: dict[str, int] = {}

    def steps() -> int:
        return metrics.read_bytes().count(b"\n") if metrics.exists() else 0

    def saved_step() -> int | None:
        """Of a checkpoint that Ray Train knows of: the files alone would not be gone back to."""
        for known in run.path("train").rglob("checkpoint_manager_snapshot.json"):
            with suppress(OSError, ValueError, LookupError):  # it is on its way
                return int(
                    json.loads(known.read_text())["checkpoint_results"][-1]["metrics"]["step"]
                )
        return None

    def workers_on(node: Any) -> list[int]:
        below = psutil.Process(raylet_of(node)).children(recursive=True)
        pids = {child.pid for child in below}
        return [worker.pid for worker in actors_called("RayTrainWorker") if worker.pid in pids]

    def kill() -> None:
        while steps() < STEPS_BEFORE:
            time.sleep(0.05)
        # one worker may have begun while the other node's core was still busy
        lost = next(node for node in reversed(nodes) if workers_on(node))
        workers.extend(workers_on(lost))
        if notice:
            told = ["ray", "drain-node", "--address", cluster.address, "--node-id",
                    lost.node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION",
                    "--reason-message", "test",
                    "--deadline-remaining-seconds", str(NOTICE_S)]  # fmt: skip
            subprocess.run(told, check=True, stdout=sys.stderr)
            deadline = time.monotonic() + NOTICE_S
        while (saved := saved_step()) is None:
            time.sleep(0.05)
        seen["saved"] = saved
        if notice:  # a cloud keeps its word; a node that goes before counts as a failure
            time.sleep(max(0.0, deadline - time.monotonic()))
        cluster.remove_node(lost, allow_graceful=False)
        seen["fewest"] = steps()
        while not metrics.with_name("manifest.json").exists():
            seen["fewest"] = min(seen["fewest"], steps() or seen["fewest"])
            time.sleep(0.02)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    summary = STAGES["train"](run)
    killer.join(1)
    ray.shutdown()
    cluster.shutdown()
    return summary | {"killed": len(workers), **seen}


def main() -> None:
    with redirect_stdout(sys.stderr):  # Ray tells there of the lost node, at any moment
        summary = train_with_a_loss("--notice" in sys.argv)
    print(json.dumps(summary), flush=True)


if __name__ == "__main__":
    main()
