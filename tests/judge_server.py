"""A judge on this machine: an OpenAI-compatible server that answers from a hash of the messages."""

from __future__ import annotations

import hashlib
import json
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]


def draw(messages: list[dict[str, str]]) -> float:
    digest = hashlib.sha256(json.dumps(messages, sort_keys=True).encode()).hexdigest()
    return int(digest[:8], 16) / 2**32


def weighted(body: Body) -> Body:
    """A choice as AlpacaEval's judge gives it: log-probabilities of m and M."""
    share = min(max(draw(body["messages"]), 1e-6), 1 - 1e-6)
    top = [{"token": "m", "logprob": math.log(share)},
           {"token": "M", "logprob": math.log(1 - share)}]  # fmt: skip
    top.sort(key=lambda each: -each["logprob"])
    return {
        "index": 0, "finish_reason": "length",
        "message": {"role": "assistant", "content": top[0]["token"]},
        "logprobs": {"content": [{**top[0], "top_logprobs": top}]},
    }  # fmt: skip


def worded(text: Callable[[float], str]) -> Callable[[Body], Body]:
    """A choice in words, of a number drawn from the messages."""
    return lambda body: {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": text(draw(body["messages"]))},
        "logprobs": None,
    }


class JudgeServer:
    """bodies: every request as it came. answer: what the next ones get. status: 200, or a fault."""

    def __init__(self, answer: Callable[[Body], Body]) -> None:
        self.answer, self.status, self.delay = answer, 200, 0.0
        self.bodies: list[Body] = []
        lock, server = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    server.bodies.append(body)
                threading.Event().wait(server.delay)
                content: Body = {"error": {"message": "no", "code": "refused"}}
                if server.status == 200:
                    content = {
                        "id": "x", "object": "chat.completion", "created": 0,
                        "model": f"{body['model']}-served", "choices": [server.answer(body)],
                        "usage": {"prompt_tokens": 389, "completion_tokens": 1,
                                  "total_tokens": 390},
                    }  # fmt: skip
                data = json.dumps(content).encode()
                self.send_response(server.status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@contextmanager
def judge_server(answer: Callable[[Body], Body] = weighted) -> Iterator[JudgeServer]:
    server = JudgeServer(answer)
    try:
        yield server
    finally:
        server.close()
