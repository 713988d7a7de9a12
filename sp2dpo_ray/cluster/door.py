"""The door of a cluster: its job server, found locked, opened with the cluster's token.

In: the address of a Ray dashboard. Out: Ray's job client. Invariant: a token is never sent to a
server that does not ask for one, and a cluster that asks for none is refused unless that was meant.
"""

from __future__ import annotations

import logging
import os
from typing import Any
from urllib.parse import urlsplit

from sp2dpo_ray.console import say
from sp2dpo_ray.errors import ConfigError, Stopped

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
WAIT_S = 20.0
# they tell of every file that they pack and of every connection that they close
CHATTY = (
    "ray._private.runtime_env.packaging",
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
)
HOW = "RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token or RAY_AUTH_TOKEN"


def connect(address: str | None, *, allow_open: bool) -> Any:
    """Ray's JobSubmissionClient for the cluster at the address.

    Raises ConfigError where the cluster lets anybody in, or does not take the token; Stopped where
    nobody answers.
    """
    url = address_of(address)
    locked = _asks_for_token(url)
    if not locked and not allow_open:
        raise ConfigError(
            f"{url} runs the code of anybody who reaches it: its Ray was started without "
            "RAY_AUTH_MODE=token. Start it with token authentication (cluster/ has files that "
            "do), or say --allow-open if nobody else can reach it"
        )
    # read by Ray when it is imported; where nothing was asked for, nothing is told
    os.environ["RAY_AUTH_MODE"] = "token" if locked else "disabled"
    if locked and urlsplit(url).scheme == "http" and urlsplit(url).hostname not in LOOPBACK:
        say(f"{url}: the token travels unencrypted; a tunnel or https keeps it secret")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    for chatty in CHATTY:
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        return JobSubmissionClient(url)
    except AuthenticationError:
        raise ConfigError(
            f"{url} does not take the token that is found here ({HOW}): it must be the one that "
            "the head was started with"
        ) from None


def address_of(address: str | None) -> str:
    """The dashboard's URL: as given, of RAY_API_SERVER_ADDRESS, or this machine's."""
    url = address or os.environ.get("RAY_API_SERVER_ADDRESS") or DEFAULT_ADDRESS
    url = url if "://" in url else f"http://{url}"
    if urlsplit(url).scheme not in ("http", "https"):
        raise ConfigError(
            f"--address: {url!r} is not the address of a dashboard, such as {DEFAULT_ADDRESS}"
        )
    return url.rstrip("/")


def _asks_for_token(url: str) -> bool:
    import requests

    try:
        answer = requests.get(f"{url}/api/jobs/", timeout=WAIT_S, allow_redirects=False)
    except requests.RequestException as error:
        raise Stopped(
            f"no Ray dashboard answers at {url} ({type(error).__name__}). It listens on the head's "
            "own loopback: make a tunnel with `ray dashboard CLUSTER.yaml`, or on Kubernetes with "
            "`kubectl port-forward service/sp2dpo-head-svc 8265`"
        ) from None
    if answer.status_code in (401, 403):
        return True
    if answer.ok and isinstance(_json(answer), list):
        return False
    raise ConfigError(f"{url} is no Ray dashboard: it answered {answer.status_code}")


def _json(answer: Any) -> Any:
    try:
        return answer.json()
    except ValueError:
        return None
