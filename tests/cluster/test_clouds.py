"""Cluster YAML of clouds and machines of one's own: Ray's own checks, and the door's lock."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

CLOUDS = Path(__file__).parents[2] / "cluster" / "clouds"
FILES = sorted(CLOUDS.glob("*.yaml"))
RENTED = [path for path in FILES if path.stem != "onprem"]
each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
each_cloud = pytest.mark.parametrize("path", RENTED, ids=lambda path: path.stem)


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    return content


def test_there_is_one_for_each_place() -> None:
    assert [path.stem for path in FILES] == ["aws", "azure", "gcp", "onprem"]


@each_file
def test_ray_takes_it(path: Path) -> None:
    """The schema, and what Ray's launcher checks when it fills in defaults."""
    prepared = prepare_config(read(path))
    validate_config(prepared)
    assert prepared["head_node_type"] in prepared["available_node_types"]


@each_file
def test_ray_refuses_what_is_misspelt(path: Path) -> None:
    with pytest.raises(Exception, match="idle_minutes"):
        validate_config(prepare_config(read(path) | {"idle_minutes": 5}))


@each_file
def test_ray_installs_nothing_that_was_not_asked_for(path: Path) -> None:
    """Ray fills in what a file leaves out, on Azure an environment of conda for another Python."""
    prepared = prepare_config(read(path))
    assert (prepared["setup_commands"], prepared["worker_setup_commands"]) == ([], [])
    asked = " ".join(prepared["head_setup_commands"])
    assert asked == " ".join(read(path)["head_setup_commands"])
    sdk = {"aws": "boto3", "gcp": "google-api-python-client", "azure": "azure-mgmt-compute"}
    assert sdk.get(path.stem, "") in asked  # the head's autoscaler asks the cloud with it
    assert "conda" not in asked


@each_file
def test_the_door_is_locked(path: Path) -> None:
    config = read(path)
    starts = config["head_start_ray_commands"][1], config["worker_start_ray_commands"][1]
    for start in starts:
        assert "RAY_AUTH_MODE=token ray start" in start
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert config["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}


@each_file
def test_no_secret_is_written_in_it(path: Path) -> None:
    """Keys come from a file of the node, which no command of this file prints."""
    text = path.read_text()
    assert "--env-file /etc/sp2dpo/keys.env" in text
    assert not re.search(r"(?i)(api_key|token|password)\s*[=:]\s*['\"]?[A-Za-z0-9_\-]{16,}", text)


@each_file
def test_every_word_to_replace_is_explained_at_the_head(path: Path) -> None:
    head, _, body = path.read_text().partition("\ncluster_name")
    used = {re.sub(r"_\d$", "", word) for word in re.findall(r"CHANGE_ME_\w+", body)}
    told = {re.sub(r"_\d$", "", word) for word in re.findall(r"CHANGE_ME_\w+", head)}
    assert used == told


@each_cloud
def test_the_run_folder_is_the_containers_users(path: Path) -> None:
    """A new share is root's alone."""
    commands = read(path)["initialization_commands"]
    (mount,) = (n for n, command in enumerate(commands) if " mount " in command)
    assert commands[mount + 1] == "sudo install -d -o 1000 -g 1000 /shared/runs"


@each_cloud
def test_the_head_is_bought_and_the_others_are_spot(path: Path) -> None:
    types = read(path)["available_node_types"]
    spot = {
        name: any(word in str(node["node_config"]) for word in ("'spot'", "'SPOT'", "'Spot'"))
        for name, node in types.items()
    }
    assert spot.pop("head") is False
    assert all(spot.values())
    watcher = f"-m sp2dpo_ray.cluster.notice {path.stem} "
    assert watcher in read(path)["worker_start_ray_commands"][-1]
    assert types["head"]["resources"]["CPU"] == 0  # nothing computes where the cluster's heart is


@each_cloud
def test_groups_grow_from_nothing_and_keep_to_the_whole(path: Path) -> None:
    config = read(path)
    groups = {k: v for k, v in config["available_node_types"].items() if k != "head"}
    assert {"annotate", "a100_80g_x8", "h100_x8"} <= set(groups)
    assert all(group["min_workers"] == 0 for group in groups.values())
    assert config["max_workers"] == sum(group["max_workers"] for group in groups.values())
    for name, group in groups.items():
        assert group["resources"].get("GPU", 0) == int((re.findall(r"_x(\d)$", name) or [0])[0])
    assert groups["annotate"]["docker"] == {"worker_image": "CHANGE_ME_IMAGE_CPU"}


def test_gpu_machines_boot_from_a_disk_that_they_can_have() -> None:
    """Google's default is the standard disk, which machines with H100 do not take; a type is named
    with the zone that it is in."""
    config = read(CLOUDS / "gcp.yaml")
    zone = config["provider"]["availability_zone"]
    for node in config["available_node_types"].values():
        (disk,) = node["node_config"]["disks"]
        kind = disk["initializeParams"].get("diskType")
        gpu = "GPU" in node["resources"]
        assert kind == (f"zones/{zone}/diskTypes/pd-balanced" if gpu else None)


def test_azures_user_may_use_docker_before_ray_does() -> None:
    """The group counts from the next login, and Ray keeps a connection for ten seconds."""
    from ray.autoscaler._private.command_runner import SSHOptions

    kept = SSHOptions("key", control_path="path").arg_dict["ControlPersist"]
    (first, *_) = read(CLOUDS / "azure.yaml")["initialization_commands"]
    (seconds,) = re.findall(r"usermod -aG docker \$USER && sleep (\d+)$", first)
    assert int(seconds) > int(kept.rstrip("s"))
