"""A script: a cluster of a head without cores and two nodes, which loses a node when it is told to.

Run as: python -m tests.cluster.nodes DASHBOARD_PORT FOLDER. Prints the dashboard's address. Each
line of stdin is the name of an actor class: the node that runs one is killed without warning and
another one takes its place; the id of the lost node is printed. RAY_AUTH_MODE and RAY_AUTH_TOKEN of
the environment are the cluster's.
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import psutil
from ray.cluster_utils import Cluster

from tests.processes import actors_called, raylet_of


def add_node(cluster: Cluster, **options: Any) -> Any:
    """With a folder of its own: nodes of one session folder would unpack a job's working directory
    over each other. Where another Ray of this machine has the usual port of the agent that starts
    jobs, and where a job would find two clusters: the port and the address are its own."""
    folder = tempfile.mkdtemp(dir=sys.argv[2])
    node = cluster.add_node(
        object_store_memory=150 << 20, temp_dir=folder, dashboard_agent_listen_port=0, **options
    )
    Path(folder, "ray_current_cluster").write_text(cluster.address)
    return node


def lose(cluster: Cluster, nodes: list[Any], actor: str) -> str:
    """Kill a node with such an actor, or "" where no node has one."""
    for node in nodes:
        below = {child.pid for child in psutil.Process(raylet_of(node)).children(recursive=True)}
        if any(process.pid in below for process in actors_called(actor)):
            cluster.remove_node(node, allow_graceful=False)
            nodes.remove(node)
            nodes.append(add_node(cluster, num_cpus=2))
            return str(node.node_id)
    return ""


def main() -> None:
    out = sys.stdout
    with redirect_stdout(sys.stderr):
        cluster = Cluster()
        add_node(cluster, num_cpus=0, include_dashboard=True, dashboard_port=int(sys.argv[1]))
        nodes = [add_node(cluster, num_cpus=2) for _ in range(2)]
        print(f"http://{cluster.webui_url}", file=out, flush=True)
        for line in sys.stdin:
            print(lose(cluster, nodes, line.strip()), file=out, flush=True)
        cluster.shutdown()


if __name__ == "__main__":
    main()
