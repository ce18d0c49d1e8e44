"""A program in vLLM's place that loads in a second and can be killed, stopped and broken as vLLM can.

An API server with our channel and vLLM's HTTP routes, and an EngineCore in a process of its own, without which there is
no token. `install` writes the modules that `vllama.worker.launch` imports of vLLM.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import sys
import time
import traceback
from argparse import Namespace
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from multiprocessing import shared_memory
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import uvicorn
from setproctitle import setproctitle

from vllama.asgi import Receive, Scope, Send, cancelled_on_disconnect, read_body
from vllama.errors import WorkerDied
from vllama.ollama.status import JSON, NDJSON
from vllama.protocol.frames import Form
from vllama.protocol.profile import Profile
from vllama.protocol.sockets import channel_socket
from vllama.worker import channel_server
from vllama.worker.sink import HttpSink, Sink

_MODULES = {
    "vllm/__init__.py": "",
    "vllm/entrypoints/__init__.py": "",
    "vllm/entrypoints/cli/__init__.py": "",
    "vllm/entrypoints/cli/serve.py": "from faults.stand_in_vllm import ServeSubcommand\n",
    "vllm/utils/__init__.py": "",
    "vllm/utils/argparse_utils.py": "from faults.stand_in_vllm import FlexibleArgumentParser\n",
    "vllm/platforms/__init__.py": "from faults.stand_in_vllm import current_platform\n",
}
_TOKEN_SECONDS = 0.002
_LEAST_KV_CACHE = 10**6


def install(directory: Path) -> dict[str, str]:
    """Write the modules; return what has to be in the environment of the server that is to use them."""
    for name, text in _MODULES.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)
    tests = Path(__file__).parents[1]
    path = os.pathsep.join(map(str, [directory, tests, tests.parent]))
    return {"PYTHONPATH": path, "VLLAMA_SPARE_WORKERS": "0"}  # a spare imports much that is not written


class FlexibleArgumentParser:
    """Keeps the arguments as they are."""

    def __init__(self, prog: str) -> None:
        del prog

    def add_subparsers(self, **how: Any) -> None:
        """There is one command."""

    def parse_args(self, arguments: list[str]) -> Namespace:
        """Return them."""
        return Namespace(arguments=arguments[1:])


class _Platform:
    def is_cpu(self) -> bool:
        return False


current_platform = _Platform()


class ServeSubcommand:
    """`vllm serve`."""

    def subparser_init(self, subparsers: Any) -> None:
        """Nothing to parse."""

    def validate(self, parsed: Namespace) -> None:
        """Nothing to refuse."""

    def cmd(self, parsed: Namespace) -> None:
        """Load, and serve until SIGTERM."""
        snapshot, arguments = Path(parsed.arguments[0]), parsed.arguments
        print("INFO loading", flush=True)
        json.loads((snapshot / "config.json").read_text())
        flags = dict(zip(arguments, [*arguments[1:], ""], strict=True))
        ours, theirs = multiprocessing.Pipe()
        engine = multiprocessing.get_context("fork").Process(
            target=_run_engine, args=(theirs, snapshot, int(flags.get("--kv-cache-memory-bytes", "0"))), daemon=True
        )
        engine.start()
        theirs.close()
        try:
            ours.recv()
        except EOFError:
            engine.join()
            message = f"Engine core initialization failed. See root cause above. Failed core proc(s): {engine.exitcode}"
            raise RuntimeError(message) from None
        asyncio.run(_serve(ours, flags["--uds"]))


def _run_engine(pipe: Connection, snapshot: Path, kv_cache: int) -> None:
    setproctitle("VLLM::EngineCore")
    shared_memory.SharedMemory(create=True, size=1 << 16)
    time.sleep(0.5)
    try:
        _check(snapshot, kv_cache)
    except Exception:  # noqa: BLE001 - as EngineCore does
        traceback.print_exc()
        sys.exit(1)
    pipe.send("ready")
    while True:
        question = pipe.recv()
        time.sleep(_TOKEN_SECONDS)
        pipe.send(question)


def _check(snapshot: Path, kv_cache: int) -> None:
    if not list(snapshot.glob("*.safetensors")):
        raise RuntimeError(f"Cannot find any model weights with `{snapshot}`")
    if 0 < kv_cache < _LEAST_KV_CACHE:
        raise ValueError("No available memory for the cache blocks. Try increasing `gpu_memory_utilization`.")


class _Engine:
    """EngineCore, as the API server sees it."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._number = 0
        self.running = 0
        self.is_dead = asyncio.Event()
        asyncio.get_running_loop().add_reader(pipe.fileno(), self._receive)

    def _receive(self) -> None:
        try:
            answered = self._waiting.pop(self._pipe.recv())
        except (EOFError, OSError):
            asyncio.get_running_loop().remove_reader(self._pipe.fileno())
            self.is_dead.set()
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(WorkerDied())
            return
        if not answered.done():
            answered.set_result(None)

    async def ask(self) -> None:
        """Have it do a step. Raises WorkerDied."""
        if self.is_dead.is_set():
            raise WorkerDied
        self._number += 1
        self._waiting[self._number] = answered = asyncio.get_running_loop().create_future()
        self._pipe.send(self._number)
        await answered

    @asynccontextmanager
    async def tokens(self, number: int) -> AsyncIterator[AsyncIterator[bool]]:
        """So many tokens; says of each whether it is the last."""

        async def made() -> AsyncIterator[bool]:
            for index in range(number):
                await self.ask()
                yield index == number - 1

        self.running += 1
        try:
            yield made()
        finally:
            self.running -= 1


async def _serve(pipe: Connection, uds: str) -> None:
    engine = _Engine(pipe)
    native = partial(_answer, engine)
    endpoints = {"/api/chat": native, "/api/generate": native}
    listening = await channel_server.listen(channel_socket(Path(uds), 0, 1), endpoints, engine.ask)
    server = uvicorn.Server(
        uvicorn.Config(partial(_over_http, engine), uds=uds, interface="asgi3", lifespan="off", log_config=None)
    )
    serving = asyncio.create_task(server.serve())
    await asyncio.wait({serving, asyncio.create_task(engine.is_dead.wait())}, return_when=asyncio.FIRST_COMPLETED)
    listening.close()
    if engine.is_dead.is_set():
        print("vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue.", flush=True)
        os._exit(1)


async def _over_http(engine: _Engine, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        return
    body, sink = await read_body(receive), HttpSink(send)
    if scope["path"] == "/v1/models":
        await sink.reply(200, JSON, b'{"data":[{"max_model_len":8192}]}')
    elif scope["path"] == "/metrics":
        await sink.reply(200, "text/plain", b"vllm:num_requests_running{a} %d\n" % engine.running)
    elif scope["path"] == "/v1/chat/completions":
        async with cancelled_on_disconnect(receive):
            await _complete(engine, json.loads(body), sink)
    else:
        await _answer(engine, body, 0, sink, None)


async def _answer(
    engine: _Engine, body: bytes, received: int, sink: Sink, profile: Profile | None, form: Form = Form.UNCHECKED
) -> None:
    """Ollama's routes."""
    del received, profile, form
    asked = json.loads(body)
    streams = asked.get("stream", True)
    try:
        if streams:
            await sink.start(NDJSON)
        async with engine.tokens(asked.get("options", {}).get("num_predict", 1)) as tokens:
            async for last in tokens:
                record = json.dumps({"done": last}, separators=(",", ":")).encode()
                if streams:
                    await sink.write(record + b"\n", last=last)
                elif last:
                    await sink.reply(200, JSON, record)
    except WorkerDied as error:
        await sink.fail(error)


async def _complete(engine: _Engine, asked: dict[str, Any], sink: Sink) -> None:
    """`/v1/chat/completions`; as vLLM's, it breaks off when its engine dies."""
    streams = asked.get("stream")
    if streams:
        await sink.start("text/event-stream; charset=utf-8")
    async with engine.tokens(asked.get("max_tokens") or 1) as tokens:
        async for last in tokens:
            chunk = json.dumps({"choices": [{"finish_reason": "length" if last else None}]}).encode()
            if streams:
                await sink.write(b"data: %b\n\n" % chunk, last=False)
            elif last:
                await sink.reply(200, JSON, chunk)
    if streams:
        await sink.write(b"data: [DONE]\n\n", last=True)
