"""Spot notices: asks the machine's metadata service whether it is about to be taken away, and tells
Ray, which tells the training that runs there.

Run on every spot node beside Ray: python -m sp2dpo_ray.cluster.notice aws|gcp|azure. In: the
cloud's metadata service. Out: a drain request for this node, with the seconds that are left.
Invariant: a service that does not answer is asked again; nothing is drained on a guess.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from urllib.request import ProxyHandler, Request, build_opener

from sp2dpo_ray.console import say
from sp2dpo_ray.errors import ConfigError

EVERY_S = 5.0
ANSWER_S = 2.0
LEAST_S = 1  # Ray takes no deadline of zero
_open = build_opener(ProxyHandler({})).open  # metadata services are never behind a proxy


def _ask(url: str, headers: dict[str, str], method: str = "GET") -> str | None:
    """The answer, or None where there is none: a 404 is how AWS says that nothing is planned."""
    try:
        with _open(Request(url, headers=headers, method=method), timeout=ANSWER_S) as answer:
            return str(answer.read().decode())
    except OSError:  # of urllib's errors all are
        return None


def _aws(at: str) -> datetime | None:
    life = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    token = _ask(f"{at}/latest/api/token", life, "PUT")
    headers = {"X-aws-ec2-metadata-token": token or ""}
    told = _ask(f"{at}/latest/meta-data/spot/instance-action", headers)
    return None if told is None else _time(json.loads(told)["time"])


def _gcp(at: str) -> datetime | None:
    told = _ask(f"{at}/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"})
    if told is None or told.strip() != "TRUE":
        return None
    return datetime.fromtimestamp(time.time() + 30, UTC)  # what Google grants


def _azure(at: str) -> datetime | None:
    url = f"{at}/metadata/scheduledevents?api-version=2020-07-01"
    told = json.loads(_ask(url, {"Metadata": "true"}) or "{}")
    for event in told.get("Events", []):
        if event["EventType"] == "Preempt":
            return _time(event["NotBefore"]) if event["NotBefore"] else datetime.now(UTC)
    return None


def _time(text: str) -> datetime:
    """ISO 8601 as AWS writes it, or the form of HTTP as Azure does."""
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        when = datetime.strptime(text, "%a, %d %b %Y %H:%M:%S GMT")
    return when if when.tzinfo else when.replace(tzinfo=UTC)


CLOUDS: dict[str, tuple[Callable[[str], datetime | None], str]] = {
    "aws": (_aws, "http://169.254.169.254"),
    "gcp": (_gcp, "http://metadata.google.internal"),
    "azure": (_azure, "http://169.254.169.254"),
}


def wait(cloud: str, at: str | None = None, *, every_s: float = EVERY_S) -> int:
    """Return once this machine is to be taken away: the whole seconds that are left, at least one.

    at: where the metadata service is, if not at the cloud's own address.
    """
    if cloud not in CLOUDS:
        raise ConfigError(f"no cloud {cloud!r}; those whose notices are known: {[*CLOUDS]}")
    look, own = CLOUDS[cloud]
    while True:
        try:
            when = look(at or own)
        except (ValueError, KeyError) as error:  # not what the service is documented to say
            say(f"notice: {cloud}: {type(error).__name__}: {error}")
            when = None
        if when is not None:
            return max(LEAST_S, int((when - datetime.now(UTC)).total_seconds()))
        time.sleep(every_s)


def drain(seconds: int) -> int:
    """Tell Ray that this node goes in so many seconds; the exit code of Ray's command."""
    command = [
        "ray", "drain-node", "--reason", "DRAIN_NODE_REASON_PREEMPTION",
        "--reason-message", "spot notice", "--deadline-remaining-seconds", str(seconds),
    ]  # fmt: skip
    return subprocess.run(command, check=False).returncode


def main() -> None:
    if len(sys.argv) not in (2, 3):
        raise SystemExit("usage: python -m sp2dpo_ray.cluster.notice CLOUD [METADATA_URL]")
    try:
        seconds = wait(*sys.argv[1:])
    except ConfigError as error:
        raise SystemExit(f"sp2dpo: {error}") from None
    say(f"notice: this machine goes in {seconds} s")
    raise SystemExit(drain(seconds))


if __name__ == "__main__":
    main()
