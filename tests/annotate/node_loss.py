"""A script: annotate on a cluster of three nodes, one of which is killed in the middle.

Run as: python -m tests.annotate.node_loss CONFIG OVERRIDE... Prints the stage's summary as JSON.
The node that is killed is one that runs a panel actor, so the actor comes up again elsewhere.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from typing import Any

import psutil
import ray
from ray.cluster_utils import Cluster

from sp2dpo_ray.config import load_config
from sp2dpo_ray.run import Run
from sp2dpo_ray.stages import STAGES
from tests.processes import panel_actors, raylet_of

NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 150 << 20}
SECONDS_BEFORE = 4.0  # of asking, so that some answers are on record and some are not


def node_with_an_actor(nodes: list[Any]) -> Any:
    """A worker node whose raylet is an ancestor of a panel actor; waits for one."""
    while True:
        for actor in panel_actors():
            ancestors = {parent.pid for parent in actor.parents()}
            for node in nodes:
                if raylet_of(node) in ancestors:
                    return node
        time.sleep(0.2)


def annotate_with_a_loss() -> dict[str, Any]:
    cluster = Cluster(
        initialize_head=True,
        head_node_args=NODE | {"include_dashboard": False},
    )
    nodes = [cluster.add_node(**NODE) for _ in range(2)]
    ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
    run = Run(load_config(sys.argv[1], tuple(sys.argv[2:])))
    STAGES["prepare"](run)
    killed = []

    def kill() -> None:
        node = node_with_an_actor(nodes)
        time.sleep(SECONDS_BEFORE)
        children = psutil.Process(raylet_of(node)).children(recursive=True)
        killed.extend(child.pid for child in children if child in panel_actors())
        cluster.remove_node(node, allow_graceful=False)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    summary = STAGES["annotate"](run)
    killer.join(1)
    ray.shutdown()
    cluster.shutdown()
    return summary | {"killed": len(killed)}


def main() -> None:
    with contextlib.redirect_stdout(sys.stderr):  # Ray tells there of the lost node, at any moment
        summary = annotate_with_a_loss()
    print(json.dumps(summary), flush=True)


if __name__ == "__main__":
    main()
