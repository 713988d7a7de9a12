"""A script: train on a cluster that shrinks in the middle.

Run as: python -m tests.train.node_loss CONFIG OVERRIDE... The head has no core, two nodes have one
each, and one of them is killed after the first checkpoint. Prints the stage's summary as JSON, with
the number of workers that each line of the metrics had.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from contextlib import redirect_stdout
from typing import Any

import psutil
import ray
from ray.cluster_utils import Cluster

from sp2dpo_ray.config import load_config
from sp2dpo_ray.run import Run
from sp2dpo_ray.stages import STAGES
from tests.processes import actors_called

NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 150 << 20}


def train_with_a_loss() -> dict[str, Any]:
    head = NODE | {"num_cpus": 0, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = [cluster.add_node(**NODE) for _ in range(2)]
    ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
    run = Run(load_config(sys.argv[1], tuple(sys.argv[2:])))
    workers: list[int] = []

    def kill() -> None:
        while not list(run.path("train").rglob("part-0.json")):
            time.sleep(0.05)
        raylet = nodes[-1].all_processes["raylet"][0].process.pid
        below = {child.pid for child in psutil.Process(raylet).children(recursive=True)}
        workers.extend(w.pid for w in actors_called("RayTrainWorker") if w.pid in below)
        cluster.remove_node(nodes[-1], allow_graceful=False)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    summary = STAGES["train"](run)
    killer.join(1)
    ray.shutdown()
    cluster.shutdown()
    return summary | {"killed": len(workers)}


def main() -> None:
    with redirect_stdout(sys.stderr):  # Ray tells there of the lost node, at any moment
        summary = train_with_a_loss()
    print(json.dumps(summary), flush=True)


if __name__ == "__main__":
    main()
