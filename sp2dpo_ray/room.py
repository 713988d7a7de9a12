"""What a Ray cluster has room for; where nodes come when they are asked for, they are.

In: bundles of resources that one node each must hold. Out: the cluster's resources. Invariant: a
cluster that cannot grow is answered for at once, so whoever asks can refuse with figures instead of
waiting without a word.
"""

from __future__ import annotations

import time

import ray
from ray.autoscaler.sdk import request_resources

from sp2dpo_ray.console import say

HEAD = "node:__internal_head__"
WAIT_S = 1200.0  # a machine with GPUs takes minutes to start, and an image of some GB to arrive
LOOK_S = 2.0
Bundle = dict[str, float]


def grows() -> bool:
    """Whether an autoscaler adds nodes: the rented clusters have a head that computes nothing, and
    groups that begin with no node."""
    heads = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return any(HEAD in resources and not resources.get("CPU") for resources in heads)


def room(bundles: list[Bundle], *, wait_s: float = WAIT_S) -> Bundle:
    """The resources of the cluster, after it had this long to start nodes for the bundles."""
    present: Bundle = ray.cluster_resources()
    if _holds(present, bundles) or not grows():
        return present
    total = {kind: sum(bundle.get(kind, 0) for bundle in bundles) for kind in bundles[0]}
    told = ", ".join(f"{amount:g} {kind}s" for kind, amount in total.items() if amount)
    say(f"waiting for nodes with {told}")
    request_resources(bundles=bundles)
    try:
        deadline = time.monotonic() + wait_s
        while not _holds(present, bundles) and time.monotonic() < deadline:
            time.sleep(LOOK_S)
            present = ray.cluster_resources()
    finally:
        request_resources(bundles=[])  # what idles may go again
    return present


def _holds(present: Bundle, bundles: list[Bundle]) -> bool:
    kinds = {kind for bundle in bundles for kind in bundle}
    return all(
        sum(bundle.get(kind, 0) for bundle in bundles) <= present.get(kind, 0) for kind in kinds
    )
