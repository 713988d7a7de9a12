"""KubeRay's manifests: pods by Kubernetes' own schemas, the rest by the fields that KubeRay has.

With SP2DPO_KUBERAY_CRDS, a folder of KubeRay's `ray-operator/config/crd/bases`, each manifest is
held against the whole schema too, as the API server would.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

FOLDER = Path(__file__).parents[2] / "cluster" / "kubernetes"
MANIFESTS = {
    document["kind"]: document
    for name in ("cluster", "job")
    for document in yaml.safe_load_all((FOLDER / f"{name}.yaml").read_text())
}
MONITORS = [*yaml.safe_load_all((FOLDER / "monitor.yaml").read_text())]
CLUSTER, JOB = MANIFESTS["RayCluster"]["spec"], MANIFESTS["RayJob"]["spec"]
GROUPS = {"head": CLUSTER["headGroupSpec"]} | {
    group["groupName"]: group for group in CLUSTER["workerGroupSpecs"]
}
VERSION = "1.30"
# of KubeRay 1.6's reference, https://docs.ray.io/en/master/cluster/kubernetes/references/api.html
FIELDS = {
    "cluster": {"authOptions", "suspend", "managedBy", "autoscalerOptions",
                "headServiceAnnotations", "enableInTreeAutoscaling",
                "gcsFaultToleranceOptions", "headGroupSpec",
                "rayVersion", "workerGroupSpecs", "upgradeStrategy"},
    "head": {"template", "headService", "enableIngress", "resources", "labels", "rayStartParams",
             "serviceType"},
    "group": {"suspend", "groupName", "replicas", "minReplicas", "maxReplicas",
              "idleTimeoutSeconds", "resources", "labels", "rayStartParams", "template",
              "scaleStrategy", "numOfHosts"},
    "job": {"activeDeadlineSeconds", "waitingTtlSeconds", "backoffLimit", "rayClusterSpec",
            "submitterPodTemplate", "metadata", "clusterSelector", "submitterConfig", "managedBy",
            "deletionStrategy", "entrypoint", "runtimeEnvYAML", "jobId", "submissionMode",
            "entrypointResources", "entrypointNumCpus", "entrypointNumGpus",
            "ttlSecondsAfterFinished", "shutdownAfterJobFinishes", "suspend"},
}  # fmt: skip
CRDS = os.environ.get("SP2DPO_KUBERAY_CRDS")


def pod(template: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "pod", **template.get("metadata", {})},
        "spec": template["spec"],
    }


@pytest.mark.parametrize("kind", ["PersistentVolumeClaim", "NetworkPolicy"])
def test_kubernetes_own_kinds_are_valid(kind: str) -> None:
    assert kubernetes_validate.validate(MANIFESTS[kind], VERSION, strict=True)


@pytest.mark.parametrize("name", [*GROUPS, "submitter"])
def test_pods_are_valid(name: str) -> None:
    template = JOB["submitterPodTemplate"] if name == "submitter" else GROUPS[name]["template"]
    assert kubernetes_validate.validate(pod(template), VERSION, strict=True)
    wrong = pod({"spec": template["spec"] | {"nodeSelectors": {}}})
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSION, strict=True)


def test_every_field_is_one_of_kuberays() -> None:
    assert set(CLUSTER) <= FIELDS["cluster"]
    assert set(CLUSTER["headGroupSpec"]) <= FIELDS["head"]
    for group in CLUSTER["workerGroupSpecs"]:
        assert set(group) <= FIELDS["group"]
    assert set(JOB) <= FIELDS["job"]
    assert {MANIFESTS[kind]["apiVersion"] for kind in ("RayCluster", "RayJob")} == {"ray.io/v1"}


@pytest.mark.skipif(not CRDS, reason="SP2DPO_KUBERAY_CRDS names no folder")
@pytest.mark.parametrize(("kind", "name"), [("RayCluster", "rayclusters"), ("RayJob", "rayjobs")])
def test_kuberays_schema_takes_it(kind: str, name: str) -> None:
    crd = yaml.safe_load((Path(CRDS or "") / f"ray.io_{name}.yaml").read_text())
    (version,) = (entry for entry in crd["spec"]["versions"] if entry["name"] == "v1")
    schema = closed(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    jsonschema.Draft7Validator(schema).validate(MANIFESTS[kind])


def closed(schema: Any) -> Any:
    """As the API server in strict mode: a field that is not known is an error."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {name: closed(part) for name, part in schema.items()}
    if inner.get("type") == "object" and "properties" in inner:
        inner.setdefault(
            "additionalProperties", bool(inner.get("x-kubernetes-preserve-unknown-fields"))
        )
    return inner


def test_the_door_is_locked() -> None:
    assert CLUSTER["authOptions"] == {"mode": "token"}
    assert CLUSTER["rayVersion"] == pinned("ray")
    for group in GROUPS.values():
        spec = group["template"]["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        for container in spec["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert [name["name"] for name in container["env"]] == ["RAY_USAGE_STATS_ENABLED"]
            assert container["envFrom"] == [{"secretRef": {"name": "sp2dpo-keys"}}]
    policy = MANIFESTS["NetworkPolicy"]["spec"]
    (label,) = policy["podSelector"]["matchLabels"].items()
    assert label == ("ray.io/cluster", MANIFESTS["RayCluster"]["metadata"]["name"])
    assert "runtimeEnvYAML" not in JOB


def test_nobody_comes_in_but_the_cluster_the_operator_and_prometheus() -> None:
    rules = MANIFESTS["NetworkPolicy"]["spec"]["ingress"]
    own, submitter, operator, prometheus = rules
    assert "ports" not in own
    assert [port["port"] for port in submitter["ports"] + operator["ports"]] == [8265, 8265]
    (source,) = operator["from"]
    (label,) = source["podSelector"]["matchExpressions"]
    assert label["values"] == ["kuberay-operator"]  # KubeRay's own pods are not the operator
    (source,) = prometheus["from"]
    assert source["namespaceSelector"]["matchLabels"] == {
        "kubernetes.io/metadata.name": "CHANGE_ME_MONITORING"
    }
    assert source["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "prometheus"}


def test_prometheus_may_read_what_it_is_told_to_and_nothing_else() -> None:
    """Ports by name, where the pods have them, and where Ray listens."""
    from ray.autoscaler._private.constants import AUTOSCALER_METRIC_PORT
    from ray.dashboard.consts import DASHBOARD_METRIC_PORT

    (container,) = GROUPS["head"]["template"]["spec"]["containers"]
    named = {port["name"]: port["containerPort"] for port in container["ports"]}
    exported = int(GROUPS["gpu"]["rayStartParams"]["metrics-export-port"])
    assert named["metrics"] == exported
    assert named["as-metrics"] == AUTOSCALER_METRIC_PORT
    assert named["dash-metrics"] == DASHBOARD_METRIC_PORT
    asked = set()
    for monitor in MONITORS:
        assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
        assert monitor["spec"]["selector"]["matchLabels"]["ray.io/cluster"] == "sp2dpo"
        asked |= {named[end["port"]] for end in monitor["spec"]["podMetricsEndpoints"]}
    allowed = MANIFESTS["NetworkPolicy"]["spec"]["ingress"][-1]["ports"]
    assert {port["port"] for port in allowed} == asked


def test_every_word_to_replace_is_explained_at_the_head() -> None:
    text = (FOLDER / "cluster.yaml").read_text()
    head, _, body = text.partition("\napiVersion")
    words = re.compile(r"CHANGE_ME_\w+")
    assert set(words.findall(body)) == set(words.findall(head))


def test_a_job_that_fails_leaves_the_cluster_that_others_share() -> None:
    """KubeRay deletes the cluster before it tries again, a selected one too (kuberay issue 4516);
    later releases refuse the two together."""
    assert "clusterSelector" in JOB
    assert "backoffLimit" not in JOB


def test_groups_ask_for_the_nodes_they_need() -> None:
    gpu, annotate = (GROUPS[name]["template"]["spec"] for name in ("gpu", "annotate"))
    assert gpu["nodeSelector"] != annotate["nodeSelector"]
    assert gpu["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "8"
    assert "nvidia.com/gpu" not in annotate["containers"][0]["resources"]["limits"]
    assert GROUPS["head"]["rayStartParams"]["num-cpus"] == "0"
    assert JOB["clusterSelector"] == {"ray.io/cluster": MANIFESTS["RayCluster"]["metadata"]["name"]}


def pinned(name: str) -> str:
    constraints = (FOLDER.parents[1] / "constraints-cpu.txt").read_text()
    (version,) = re.findall(rf"^{name}==(\S+)$", constraints, re.MULTILINE)
    return str(version)
