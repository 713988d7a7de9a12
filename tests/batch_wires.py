"""The batch APIs of OpenAI and Gemini, from the server's side: files in, jobs, files out.

A job ends after `polls` looks at it. `plan(key)` says how a request of a job ends: "ok", "error",
"refused" (it is at fault itself), "unbilled" (an answer without usage), or "missing" (no line at
all); `fate` how the job itself ends: "completed", "expired" (half of the
lines), "failed".
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from tests.wires import ANSWER, gemini_success, openai_success

Job = dict[str, Any]


@dataclass
class Batches:
    polls: int = 1
    fate: str = "completed"
    plan: Callable[[str], str] = lambda key: "ok"
    files: dict[str, bytes] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)
    ids: Any = field(default_factory=lambda: itertools.count(1))
    refuse_creation: int = 0  # so many creations succeed and then lose their answer

    def _lines(self, job: Job) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.files[job["source"]].splitlines()]
        return lines[: len(lines) // 2] if self.fate == "expired" else lines

    def _look(self, job: Job) -> bool:
        """One look at a job; whether it has just ended."""
        job["looks"] += 1
        return bool(job["looks"] == self.polls)


@dataclass
class OpenAIBatches(Batches):
    def add_to(self, router: web.UrlDispatcher) -> None:
        router.add_post("/v1/files", self.upload)
        router.add_get("/v1/files/{id}/content", self.content)
        router.add_post("/v1/batches", self.create)
        router.add_get("/v1/batches", self.list)
        router.add_get("/v1/batches/{id}", self.retrieve)

    async def upload(self, request: web.Request) -> web.Response:
        form = await request.post()
        part: Any = form["file"]
        name = f"file-{next(self.ids)}"
        self.files[name] = part.file.read()
        return web.json_response(
            {"id": name, "object": "file", "bytes": len(self.files[name]), "created_at": 0,
             "filename": part.filename, "purpose": form["purpose"], "status": "processed"}
        )  # fmt: skip

    async def create(self, request: web.Request) -> web.Response:
        body = await request.json()
        name = f"batch_{next(self.ids)}"
        self.jobs[name] = {"source": body["input_file_id"], "looks": 0, "state": "validating",
                           "metadata": body["metadata"], "out": None, "bad": None}  # fmt: skip
        for line in self.files[body["input_file_id"]].splitlines():
            self.asked[json.loads(line)["custom_id"]] += 1
        if self.refuse_creation:
            self.refuse_creation -= 1
            return web.json_response({"error": {"message": "lost"}}, status=500)
        return web.json_response(self._shown(name))

    async def list(self, request: web.Request) -> web.Response:
        data = [self._shown(name) for name in reversed(self.jobs)]
        return web.json_response({"object": "list", "data": data, "has_more": False})

    async def retrieve(self, request: web.Request) -> web.Response:
        name = request.match_info["id"]
        job = self.jobs[name]
        if self._look(job):
            job["state"] = self.fate
            if self.fate != "failed":
                self._finish(name, job)
        return web.json_response(self._shown(name))

    def _finish(self, name: str, job: Job) -> None:
        good, bad = [], []
        for line in self._lines(job):
            key, kind = line["custom_id"], self.plan(line["custom_id"])
            if kind == "missing":
                continue
            status = {"error": 500, "refused": 400}.get(kind, 200)
            body = openai_success(line["body"]["model"], ANSWER, "stop")
            if kind == "unbilled":
                del body["usage"]
            if status != 200:
                body = {"error": {"message": "batch error", "code": None}}
            response = {"status_code": status, "request_id": "r-1", "body": body}
            entry = {"id": "b", "custom_id": key, "response": response, "error": None}
            (good if status == 200 else bad).append(json.dumps(entry))
        for place, lines in (("out", good), ("bad", bad)):
            if lines:
                job[place] = f"{name}-{place}"
                # a real job keeps no order
                self.files[job[place]] = "\n".join(reversed(lines)).encode() + b"\n"

    def _shown(self, name: str) -> dict[str, Any]:
        job = self.jobs[name]
        return {
            "id": name, "object": "batch", "endpoint": "/v1/chat/completions", "errors": None,
            "input_file_id": job["source"], "completion_window": "24h", "status": job["state"],
            "output_file_id": job["out"], "error_file_id": job["bad"], "created_at": 0,
            "metadata": job["metadata"],
        }  # fmt: skip

    async def content(self, request: web.Request) -> web.Response:
        return web.Response(body=self.files[request.match_info["id"]])


@dataclass
class GeminiBatches(Batches):
    uploads: dict[str, bytearray] = field(default_factory=dict)

    def add_to(self, router: web.UrlDispatcher) -> None:
        router.add_post("/upload/v1beta/files", self.upload)
        router.add_post("/v1beta/models/{model}:batchGenerateContent", self.create)
        router.add_get("/v1beta/batches", self.list)
        router.add_get("/v1beta/batches/{id}", self.get)
        router.add_get("/v1beta/files/{id}:download", self.download)

    async def upload(self, request: web.Request) -> web.Response:
        """The resumable protocol: a start that names a URL, then chunks."""
        command = request.headers["X-Goog-Upload-Command"]
        if command == "start":
            name = f"up{next(self.ids)}"
            self.uploads[name] = bytearray()
            url = f"http://{request.host}{request.path}?upload_id={name}"
            return web.json_response({}, headers={"X-Goog-Upload-URL": url})
        received = self.uploads[request.query["upload_id"]]
        received += await request.read()
        if "finalize" not in command:
            return web.Response(headers={"X-Goog-Upload-Status": "active"})
        name = f"files/f{next(self.ids)}"
        self.files[name] = bytes(received)
        file = {"name": name, "mimeType": "jsonl", "sizeBytes": str(len(received)),
                "state": "ACTIVE", "uri": name}  # fmt: skip
        return web.json_response({"file": file}, headers={"X-Goog-Upload-Status": "final"})

    async def create(self, request: web.Request) -> web.Response:
        batch = (await request.json())["batch"]
        name = f"batches/b{next(self.ids)}"
        source = batch["inputConfig"]["fileName"]
        self.jobs[name] = {"source": source, "looks": 0, "state": "PENDING", "out": None,
                           "display": batch["displayName"],
                           "model": request.match_info["model"]}  # fmt: skip
        for line in self.files[source].splitlines():
            self.asked[json.loads(line)["key"]] += 1
        if self.refuse_creation:
            self.refuse_creation -= 1
            return web.json_response({"error": {"code": 500, "message": "lost"}}, status=500)
        return web.json_response(self._shown(name))

    async def list(self, request: web.Request) -> web.Response:
        return web.json_response({"operations": [self._shown(name) for name in self.jobs]})

    async def get(self, request: web.Request) -> web.Response:
        name = f"batches/{request.match_info['id']}"
        job = self.jobs[name]
        if self._look(job):
            job["state"] = {"completed": "SUCCEEDED"}.get(self.fate, self.fate.upper())
            if self.fate == "completed":
                self._finish(name, job)
        return web.json_response(self._shown(name))

    def _finish(self, name: str, job: Job) -> None:
        lines = []
        for line in self._lines(job):
            kind = self.plan(line["key"])
            if kind == "missing":
                continue
            answer = {"response": gemini_success(job["model"], ANSWER, "stop")}
            if kind == "unbilled":
                del answer["response"]["usageMetadata"]
            elif kind != "ok":
                code = {"error": 13, "refused": 3}[kind]
                answer = {"error": {"code": code, "message": "batch error"}}
            lines.append(json.dumps({"key": line["key"], **answer}))
        job["out"] = "files/" + name.replace("batches/", "batch-")
        self.files[job["out"]] = "\n".join(reversed(lines)).encode() + b"\n"

    def _shown(self, name: str) -> dict[str, Any]:
        job = self.jobs[name]
        meta: dict[str, Any] = {"name": name, "displayName": job["display"],
                                "state": f"BATCH_STATE_{job['state']}"}  # fmt: skip
        if job["out"]:
            meta["output"] = {"responsesFile": job["out"]}
        return {"name": name, "metadata": meta, "done": job["state"] not in ("PENDING", "RUNNING")}

    async def download(self, request: web.Request) -> web.Response:
        return web.Response(body=self.files[f"files/{request.match_info['id']}"])
