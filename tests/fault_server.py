"""An OpenAI-compatible server that fails as told, and counts what it was asked.

`plan(request)` returns the next behaviour: "ok", a status code, "drop" (connection closed without
an answer), "hang", "garbage" (200 with a body that is no JSON), "refusal", "filter", "length".
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

ANSWER = json.dumps(
    {
        "semantic_gap_category": "Factuality",
        "semantic_gap_magnitude": 0.8,
        "semantic_gap_confidence": 0.5,
    }
)
KEY = "canary-key-0123456789"


@dataclass
class Server:
    plan: Callable[[dict[str, Any]], str | int]
    requests: list[dict[str, Any]] = field(default_factory=list)
    port: int = 0
    retry_after: str | None = None
    error_code: str | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests.append(body)
        if request.headers.get("Authorization") != f"Bearer {KEY}":
            # some servers repeat the key in their complaint
            message = f"wrong key {request.headers.get('Authorization')}"
            return web.json_response({"error": {"message": message}}, status=401)
        behaviour = self.plan(body)
        if behaviour == "drop":
            assert request.transport is not None
            request.transport.close()
            return web.Response()
        if behaviour == "hang":
            await asyncio.sleep(30)
        if behaviour == "garbage":
            return web.Response(text="<html>oops", content_type="application/json")
        if isinstance(behaviour, int):
            headers = {"Retry-After": self.retry_after} if self.retry_after else {}
            error = {"message": f"status {behaviour}", "code": self.error_code}
            return web.json_response({"error": error}, status=behaviour, headers=headers)
        return web.json_response(completion(body, str(behaviour)), headers={"x-request-id": "r-1"})


def completion(body: dict[str, Any], behaviour: str) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": ANSWER}
    finish = "stop"
    if behaviour == "refusal":
        message |= {"content": None, "refusal": "I will not judge this"}
    elif behaviour == "filter":
        message["content"], finish = None, "content_filter"
    elif behaviour == "length":
        message["content"], finish = "", "length"
    return {
        "id": "c-1",
        "object": "chat.completion",
        "created": 0,
        "model": f"{body['model']}-served",
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
    }


@contextmanager
def serve(plan: Callable[[dict[str, Any]], str | int]) -> Iterator[Server]:
    """Run the server on a thread of its own for as long as the block."""
    server = Server(plan)
    loop = asyncio.new_event_loop()
    ready = threading.Event()

    async def start() -> web.AppRunner:
        application = web.Application()
        application.router.add_post("/v1/chat/completions", server.handle)
        runner = web.AppRunner(application)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        server.port = runner.addresses[0][1]
        ready.set()
        return runner

    def work() -> None:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(start())
        loop.run_forever()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
