"""Spot notices: what each cloud's metadata service says, and what Ray and a training make of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from sp2dpo_ray.cluster.notice import wait
from sp2dpo_ray.errors import ConfigError


class Metadata(BaseHTTPRequestHandler):
    """The services of three clouds, as they document them; nothing is planned for two questions."""

    asked: list[str]
    wanted: dict[str, Any]

    def do_PUT(self) -> None:
        assert self.path == "/latest/api/token"
        assert self.headers["X-aws-ec2-metadata-token-ttl-seconds"] == "60"
        self._say("secret-of-the-machine")

    def do_GET(self) -> None:
        type(self).asked.append(self.path)
        early = len(type(self).asked) <= 2
        name, value, before, after = self.wanted[self.path]
        if self.headers[name] != value:
            self.send_error(401)
        elif early and before is None:
            self.send_error(404)
        else:
            self._say(before if early else after)

    def _say(self, text: str) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        """Nothing to say."""


@pytest.fixture
def metadata() -> Iterator[str]:
    soon = datetime.now(UTC) + timedelta(seconds=100)
    Metadata.asked = []
    Metadata.wanted = {
        "/latest/meta-data/spot/instance-action": (
            "X-aws-ec2-metadata-token", "secret-of-the-machine", None,
            f'{{"action": "terminate", "time": "{soon:%Y-%m-%dT%H:%M:%SZ}"}}',
        ),
        "/computeMetadata/v1/instance/preempted": ("Metadata-Flavor", "Google", "FALSE", "TRUE"),
        "/metadata/scheduledevents?api-version=2020-07-01": (
            "Metadata", "true", '{"DocumentIncarnation": 1, "Events": []}',
            '{"Events": [{"EventType": "Reboot", "NotBefore": ""}, {"EventType": "Preempt", '
            f'"NotBefore": "{format_datetime(soon, usegmt=True)}"}}]}}',
        ),
    }  # fmt: skip
    server = ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.parametrize(("cloud", "least", "most"), [("aws", 60, 100), ("gcp", 28, 30),
                                                      ("azure", 60, 100)])  # fmt: skip
def test_it_waits_for_the_notice_and_tells_what_is_left(
    metadata: str, cloud: str, least: int, most: int
) -> None:
    assert least <= wait(cloud, metadata, every_s=0.01) <= most
    assert len(Metadata.asked) == 3


def test_nothing_is_drained_on_a_guess(metadata: str) -> None:
    """A service that does not answer, or answers what nobody understands, is asked again."""
    Metadata.wanted["/latest/meta-data/spot/instance-action"] = (
        "X-aws-ec2-metadata-token", "secret-of-the-machine", "soon", '{"action": "stop"}',
    )  # fmt: skip
    found: list[int] = []
    waiter = threading.Thread(
        target=lambda: found.append(wait("aws", metadata, every_s=0.01)), daemon=True
    )
    waiter.start()
    time.sleep(0.5)
    assert not found
    assert len(Metadata.asked) > 3
    Metadata.wanted["/latest/meta-data/spot/instance-action"] = (
        "X-aws-ec2-metadata-token", "secret-of-the-machine", None,
        '{"action": "terminate", "time": "2020-01-01T00:00:00Z"}',
    )  # fmt: skip
    waiter.join(10)
    assert found == [1]  # it is over, and Ray takes no deadline of zero
    with pytest.raises(ConfigError, match="no cloud 'ibm'"):
        wait("ibm")
