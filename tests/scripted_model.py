"""A model server whose delays are known: it speaks all four APIs, and serialises or batches as it is told."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from threading import Event, Thread
from typing import Any

from aiohttp import web


@dataclass
class Script:
    """Delays in seconds. `at_once` requests are worked on together, at no loss of speed; others wait.

    `fates` are taken by the requests in turn, and then all are "ok": "refuse" (500), "break" (an error record after
    the first token), "drop" (the connection after the first token), "cut" (no last record), "hang" (for ever).
    """

    first: float = 0.05
    per_token: float = 0.01
    tokens: int = 5
    prompt_tokens: int | None = 11
    """None: one for each word, and 7 for the template."""
    at_once: int = 1_000_000
    fates: list[str] = field(default_factory=list)
    text: str = " word"
    quantization: str = "F16"
    context: int = 4096
    models: tuple[str, ...] = ("m",)
    load: float = 0.0
    bodies: list[Any] = field(default_factory=list)
    running: int = 0
    most_running: int = 0
    resident: set[str] = field(default_factory=set)


class ScriptedModel:
    """Answers as its script says."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self._turn = asyncio.Semaphore(script.at_once)
        self.app = web.Application(client_max_size=1 << 26)
        for path in ("/api/chat", "/api/generate", "/v1/chat/completions", "/v1/completions"):
            self.app.router.add_post(path, self._answer)
        self.app.router.add_get("/api/version", self._version)
        self.app.router.add_post("/api/show", self._show)
        self.app.router.add_get("/api/ps", self._ps)
        self.app.router.add_get("/v1/models", self._models)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.script.bodies.append(body)
        if body["model"] not in self.script.models:
            return web.json_response({"error": f"model '{body['model']}' not found"}, status=404)
        if body.get("keep_alive") == 0:
            self.script.resident.discard(body["model"])
            return web.json_response({"done": True, "done_reason": "unload"})
        fate = self.script.fates.pop(0) if self.script.fates else "ok"
        async with self._turn:
            self.script.running += 1
            self.script.most_running = max(self.script.running, self.script.most_running)
            try:
                if body["model"] not in self.script.resident:
                    self.script.resident.add(body["model"])
                    await asyncio.sleep(self.script.load)
                return await self._speak(request, body, fate)
            finally:
                self.script.running -= 1

    async def _speak(self, request: web.Request, body: dict[str, Any], fate: str) -> web.StreamResponse:
        if fate == "refuse":
            return web.json_response({"error": "out of memory"}, status=500)
        speech = _Speech(self.script, request.path, body)
        if not body.get("stream", True):
            await asyncio.sleep(self.script.first + self.script.per_token * (speech.tokens - 1))
            return web.json_response(speech.whole())
        response = web.StreamResponse()
        await response.prepare(request)
        for number in range(speech.tokens):
            await asyncio.sleep(self.script.per_token if number else self.script.first)
            await response.write(speech.token())
            if fate == "hang":
                await asyncio.sleep(10_000)
            if fate == "drop" and request.transport:
                request.transport.abort()
                return response
            if fate == "break":
                await response.write(speech.encode({"error": "the runner died"}))
                return response
        if fate != "cut":
            await response.write(speech.end())
        return response

    async def _version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": "0.24.0"})

    async def _show(self, request: web.Request) -> web.Response:
        details = {"family": "llama", "parameter_size": "134M", "quantization_level": self.script.quantization}
        return web.json_response(
            {"details": details, "model_info": {"general.architecture": "llama", "llama.context_length": 8192}}
        )

    async def _ps(self, request: web.Request) -> web.Response:
        known = [
            {"name": name, "model": name, "digest": "abc", "context_length": self.script.context}
            for name in sorted(self.script.resident)
        ]
        return web.json_response({"models": known})

    async def _models(self, request: web.Request) -> web.Response:
        models = [{"id": name, "max_model_len": self.script.context} for name in self.script.models]
        return web.json_response({"object": "list", "data": models})


class _Speech:
    """The records of one reply."""

    def __init__(self, script: Script, path: str, body: dict[str, Any]) -> None:
        limit = body.get("max_tokens") or body.get("options", {}).get("num_predict") or script.tokens
        self.tokens = min(limit, script.tokens)
        self._script = script
        self._path = path
        self._events = path.startswith("/v1")
        asked = body.get("prompt") or body["messages"][-1]["content"]
        self._prompt_tokens = 7 + len(asked.split()) if script.prompt_tokens is None else script.prompt_tokens

    def encode(self, record: dict[str, Any]) -> bytes:
        text = json.dumps(record, separators=(",", ":"))
        return f"data: {text}\n\n".encode() if self._events else f"{text}\n".encode()

    def token(self) -> bytes:
        return self.encode(self._record(self._script.text, "delta"))

    def end(self) -> bytes:
        if not self._events:
            return self.encode({**self._record("", "delta"), **self._ending()})
        usage = self.encode({"choices": [], "usage": self._usage()})
        return self.encode(self._record("", "delta")) + usage + b"data: [DONE]\n\n"

    def whole(self) -> dict[str, Any]:
        text = self._script.text * self.tokens
        return {**self._record(text, "message"), **({"usage": self._usage()} if self._events else self._ending())}

    def _record(self, text: str, part: str) -> dict[str, Any]:
        choice = {"index": 0, "text": text} if self._path == "/v1/completions" else {part: {"content": text}}
        if self._events:
            return {"choices": [choice]}
        said = {"message": {"role": "assistant", "content": text}} if self._path == "/api/chat" else {"response": text}
        return {"model": "m", **said, "done": False}

    def _ending(self) -> dict[str, Any]:
        spent = int((self._script.first + self._script.per_token * (self.tokens - 1)) * 1e9)
        counts = {"prompt_eval_count": self._prompt_tokens, "eval_count": self.tokens}
        return {"done": True, "done_reason": "length", **counts, "total_duration": spent, "eval_duration": spent}

    def _usage(self) -> dict[str, Any]:
        return {"prompt_tokens": self._prompt_tokens, "completion_tokens": self.tokens}


@contextlib.asynccontextmanager
async def serving(script: Script) -> AsyncIterator[str]:
    """Serve on the running loop; gives the URL."""
    # A reply that hangs ends with its client, or soon after the server is left: aiohttp takes 0 for no limit.
    runner = web.AppRunner(ScriptedModel(script).app, access_log=None, shutdown_timeout=0.01, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@contextlib.contextmanager
def serving_beside(script: Script) -> Iterator[str]:
    """Serve on a thread of its own, in real time; gives the URL."""
    ready, url = Event(), []
    loop = asyncio.new_event_loop()
    over = asyncio.Event()

    async def serve() -> None:
        async with serving(script) as address:
            url.append(address)
            ready.set()
            await over.wait()

    thread = Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert ready.wait(30)
    try:
        yield url[0]
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()
        loop.close()
