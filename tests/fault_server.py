"""A server that speaks OpenAI, Gemini and DashScope, fails as told, and counts what it was asked.

`plan(body)` returns the next behaviour: "ok"; a status code; "drop" (connection closed before an
answer), "cut" (in the middle of one); "hang"; "slow" (a body that trickles); "garbage" (200, no
JSON), "truncated" (200, half of the JSON); "refusal", "filter", "length"; "context" (too long);
"gone" (no such model); "echo" (500 with the request's headers); "text:..." (this answer). `rpm`
makes it grant so many requests a minute and model, evenly, with one second's worth at once.

Alone: `python -m tests.fault_server --rpm 600 --latency 0.05` prints its port and serves.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from tests.batch_wires import GeminiBatches, OpenAIBatches
from tests.wires import ANSWER, BASE_URLS, WIRES, Wire

KEY = "canary-key-0123456789"
Plan = Callable[[dict[str, Any]], str | int]
FINISHES = {"ok": "stop", "refusal": "refusal", "filter": "filter", "length": "length"}


def ok(_: dict[str, Any]) -> str:
    return "ok"


@dataclass
class Grants:
    """How many requests a minute a model may make."""

    rpm: float
    free_at: float = 0.0

    def grant(self, now: float) -> bool:
        burst = max(1.0, self.rpm / 60)  # one second's worth
        self.free_at = max(self.free_at, now)
        if self.free_at - now > (burst - 1) * 60 / self.rpm + 1e-9:
            return False
        self.free_at += 60 / self.rpm
        return True


@dataclass
class Server:
    """asked: requests by the hash of their texts; statuses: answered; times: of arrival."""

    plan: Plan = ok
    retry_after: str | None = None
    headers: dict[str, str] = field(default_factory=dict)  # of every error
    error_code: str | None = None
    latency_s: float = 0.0
    rpm: float | None = None
    port: int = 0
    keep: bool = True
    requests: list[dict[str, Any]] = field(default_factory=list)
    asked: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    times: list[float] = field(default_factory=list)
    grants: dict[str, Grants] = field(default_factory=dict)
    openai_batches: OpenAIBatches = field(default_factory=OpenAIBatches)
    gemini_batches: GeminiBatches = field(default_factory=GeminiBatches)

    @property
    def url(self) -> str:
        return self.url_of("openai")

    def url_of(self, provider: str) -> str:
        return f"http://127.0.0.1:{self.port}{BASE_URLS[provider]}"

    def application(self) -> web.Application:
        application = web.Application(client_max_size=256 << 20)
        for wire in WIRES.values():
            application.router.add_post(wire.path, self._handler(wire))
        application.router.add_get("/figures", self._figures)
        self.openai_batches.add_to(application.router)
        self.gemini_batches.add_to(application.router)
        return application

    async def _figures(self, request: web.Request) -> web.Response:
        return web.json_response(
            {"statuses": self.statuses, "times": self.times, "most_asked": max(self.asked.values())}
        )

    def _handler(self, wire: Wire) -> Callable[[web.Request], Any]:
        header, prefix = wire.auth

        async def handle(request: web.Request) -> web.StreamResponse:
            body = await request.json()
            model = request.match_info.get("model") or body["model"]
            self.times.append(time.monotonic())
            if self.keep:
                self.requests.append(body)
            text = "\0".join((model, *wire.texts(body)))
            self.asked[hashlib.sha256(text.encode()).hexdigest()] += 1
            if request.headers.get(header) != prefix + KEY:
                # some servers repeat the key in their complaint
                message = f"wrong key {request.headers.get(header)}"
                error = wire.error(401, "wrong_key")
                return self._json({**error, "message": message, "echo": message}, 401)
            if self.rpm is not None:
                grants = self.grants.setdefault(model, Grants(self.rpm))
                if not grants.grant(time.monotonic()):
                    return self._error(wire, 429)
            behaviour = self.plan(body)
            if self.latency_s:
                await asyncio.sleep(self.latency_s)
            return await self._behave(wire, request, model, behaviour)

        return handle

    async def _behave(
        self, wire: Wire, request: web.Request, model: str, behaviour: str | int
    ) -> web.StreamResponse:
        if request.transport is None:  # whoever asked is gone
            return web.Response()
        if isinstance(behaviour, int):
            return self._error(wire, behaviour)
        if behaviour == "drop":
            request.transport.close()
            return web.Response()
        if behaviour == "hang":
            await asyncio.sleep(30)
        if behaviour == "garbage":
            return web.Response(text="<html>oops", content_type="application/json")
        if behaviour == "context":
            return self._json(wire.error(400, "context_length_exceeded"), 400)
        if behaviour == "echo":  # some gateways repeat what they were sent
            heard = "; ".join(f"{name}: {value}" for name, value in request.headers.items())
            return self._json({**wire.error(500, None), "message": heard, "echo": heard}, 500)
        if behaviour == "gone":
            return self._error(wire, 404)
        text = behaviour[5:] if behaviour.startswith("text:") else ANSWER
        body = json.dumps(wire.success(model, text, FINISHES.get(behaviour, "stop")))
        if behaviour == "truncated":
            return web.Response(text=body[: len(body) // 2], content_type="application/json")
        if behaviour in ("cut", "slow"):
            return await self._trickle(request, body, cut=behaviour == "cut")
        self.statuses[200] += 1
        return web.Response(
            text=body, content_type="application/json", headers={"x-request-id": "r-1"}
        )

    async def _trickle(self, request: web.Request, body: str, *, cut: bool) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(len(body))})
        await response.prepare(request)
        for start in range(0, len(body), 10):
            if cut and start > len(body) // 2:
                if request.transport is not None:
                    request.transport.close()
                break
            await response.write(body[start : start + 10].encode())
            await asyncio.sleep(0 if cut else 0.2)
        return response

    def _error(self, wire: Wire, status: int) -> web.Response:
        headers = dict(self.headers)
        if self.retry_after and status == 429:
            headers["Retry-After"] = self.retry_after
        return self._json(wire.error(status, self.error_code), status, headers)

    def _json(
        self, body: dict[str, Any], status: int, headers: dict[str, str] | None = None
    ) -> web.Response:
        self.statuses[status] += 1
        return web.json_response(body, status=status, headers=headers)

    async def start(self) -> web.AppRunner:
        runner = web.AppRunner(self.application(), access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self.port, backlog=1024).start()
        self.port = runner.addresses[0][1]
        return runner


@contextmanager
def serve(plan: Plan = ok, **options: Any) -> Iterator[Server]:
    """Run the server on a thread of its own for as long as the block."""
    server = Server(plan, **options)
    loop = asyncio.new_event_loop()
    ready = threading.Event()

    def work() -> None:
        asyncio.set_event_loop(loop)
        runner = loop.run_until_complete(server.start())
        ready.set()
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


def main() -> None:
    parser = argparse.ArgumentParser(description="A fault server in a process of its own.")
    parser.add_argument("--rpm", type=float)
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--faults", type=float, default=0.0, help="share of failing requests")
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(0)

    def plan(_: dict[str, Any]) -> str | int:
        if draw.random() >= options.faults:
            return "ok"
        return draw.choice([500, 503, 429, "drop", "cut", "garbage", "truncated"])

    server = Server(plan, latency_s=options.latency, rpm=options.rpm, port=options.port, keep=False)

    async def run() -> None:
        await server.start()
        print(server.port, flush=True)
        await asyncio.Event().wait()

    try:
        asyncio.run(run())
    except KeyboardInterrupt:
        sys.exit(0)


if __name__ == "__main__":
    main()
