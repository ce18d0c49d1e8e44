"""Measure what a request costs in CPU time, in the gateway and in the worker's route, in checkouts that take turns.

    python tests/request_cost.py CHECKOUT CHECKOUT [--rounds 5] [--keys]

The gateway serves a model whose worker is a stand-in in another process, which answers each request with one record.
The worker's side is everything before the prompt is rendered: reading and checking the body that came over the channel;
it imports vLLM. With --keys, requests to the second gateway have a key with limits. CPU time is that of the process in
question, so a busy machine hardly counts. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from base64 import b64encode
from pathlib import Path
from types import SimpleNamespace
from typing import Any

MODEL = "smollm2:135m"
KEY = "REQUEST_COST_KEY"
"""Variable with the key that requests have; without it, they have none."""

IMAGE = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 1024
CLIENTS = (1, 128)
REQUESTS = {"one question": 1024, "21 turns": 256, "image": 128}
VISION: dict[str, Any] = {
    "architectures": ["LlavaForConditionalGeneration"],
    "model_type": "llava",
    "vision_config": {"image_size": 8, "patch_size": 4},
    "image_token_index": 1,
}


def body_of(name: str) -> bytes:
    """The body that is measured under this name."""
    seen = {"role": "user", "content": "What is this?", "images": [b64encode(IMAGE).decode()]}
    turns = [{"role": ("user", "assistant")[turn % 2], "content": "Why is the sky blue? " * 20} for turn in range(21)]
    chats = {"one question": [{"role": "user", "content": "Why is the sky blue?"}], "21 turns": turns, "image": [seen]}
    return json.dumps({"model": MODEL, "messages": chats[name], "stream": False}).encode()


def frames() -> Any:
    """The frames of the checkout, wherever it keeps them."""
    try:
        from vllama.protocol import frames
    except ImportError:
        from vllama import frames  # type: ignore[attr-defined,no-redef]
    return frames


def stand_in(path: str) -> None:
    """Answer every request on a channel with one record."""
    made = frames()

    class Connection(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self.transport, self.reader = transport, made.FrameReader()

        def data_received(self, data: bytes) -> None:
            for kind, stream, _ in self.reader.feed(data):
                if kind == made.Kind.OPEN:
                    tokens = made.frame(made.Kind.TOKENS, stream, b"30 20 1") if hasattr(made.Kind, "TOKENS") else b""
                    reply = made.reply_frame(made.Kind.REPLY, stream, 200, "application/json", b"{}")
                    self.transport.write(tokens + reply)

    async def serve() -> None:
        server = await asyncio.get_running_loop().create_unix_server(Connection, path)
        print("ready", flush=True)
        await server.serve_forever()

    asyncio.run(serve())


def ask(port: int, name: str, clients: int) -> None:
    """Send the body's number of requests over so many connections."""
    body = body_of(name)
    key = b"authorization: Bearer %b\r\n" % os.environ[KEY].encode() if KEY in os.environ else b""
    head = b"POST /api/chat HTTP/1.1\r\nhost: 127.0.0.1:%d\r\n%bcontent-length: %d\r\n\r\n"
    request = head % (port, key, len(body)) + body

    async def client(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(number):
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            assert b" 200 " in head, head + await reader.read(1000)
            await reader.readexactly(2)
        writer.close()

    async def all_of_them() -> None:
        await asyncio.gather(*(client(REQUESTS[name] // clients) for _ in range(clients)))

    asyncio.run(all_of_them())


async def measure_gateway() -> None:
    """Run a gateway; for each line on standard input, print the µs of CPU time for a request."""
    import uvicorn
    from fake_worker import FakeLauncher, FakeWorker, InstalledVllm  # type: ignore[attr-defined]
    from tiny_snapshot import make_manifest, write_snapshot

    from vllama.gateway.app import Gateway
    from vllama.gateway.server import server_config
    from vllama.scheduler.scheduler import Scheduler
    from vllama.scheduler.serving import Serving
    from vllama.settings import Settings
    from vllama.store.model_store import ModelStore

    installed = InstalledVllm(multimodal=frozenset(VISION["architectures"]))
    with tempfile.TemporaryDirectory(prefix="vllama-") as directory:
        place = Path(directory)

        async def be_ready(worker: FakeWorker, stall_timeout: float | None) -> None:
            worker.channels, worker.context_length = (place / "channel",), 4096

        FakeWorker.become_ready = be_ready  # type: ignore[method-assign,assignment]
        settings = Settings.from_environment({}, models=place / "models", host="127.0.0.1:0")
        store = ModelStore(settings.models)
        store.put(make_manifest(MODEL, write_snapshot(place / "snapshot", config=VISION)))
        create_key(settings)
        launcher = FakeLauncher(place)
        launcher.serving = Serving(installed=installed)
        gateway = Gateway(settings, store, Scheduler(settings, launcher), launcher.serving)
        listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        serving = asyncio.create_task(uvicorn.Server(server_config(gateway)).serve([listener]))
        worker = start("stand-in", str(place / "channel"))
        assert worker.stdout
        worker.stdout.readline()
        loop = asyncio.get_running_loop()
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            name, clients = json.loads(line)
            before = time.process_time_ns()
            client = start("ask", str(listener.getsockname()[1]), name, str(clients))
            status = await loop.run_in_executor(None, client.wait)
            assert status == 0, status
            print((time.process_time_ns() - before) / 1000 / REQUESTS[name], flush=True)
        worker.kill()
        worker.wait()
        serving.cancel()


def create_key(settings: Any) -> None:
    """Create the key that requests have."""
    if KEY in os.environ:
        from vllama.keys.key import Key, digest
        from vllama.keys.key_file import KeyFile

        most, models = 2**40, ("smollm2:*",)
        key = Key("a", digest(os.environ[KEY].encode()), models, requests_per_minute=most, tokens_per_day=most)
        KeyFile(settings.keys_file).add(key)


async def measure_worker() -> None:
    """For each line on standard input, print the µs of CPU time that the route takes until it renders the prompt."""
    try:
        from vllama.protocol.profile import Profile
    except ImportError:
        from vllama.worker.profile import Profile  # type: ignore[import-not-found,no-redef]
    from vllama.errors import RequestError
    from vllama.ollama.requests import ChatRequest
    from vllama.worker.adapters import Adapters
    from vllama.worker.dialects import Chat
    from vllama.worker.generation import GenerationRoute

    class Sink:
        def count(self, counts: Any) -> None:
            """Do nothing."""

        async def fail(self, error: Exception) -> None:
            assert str(error) == "rendered", error

    async def rendered(images: Any) -> Any:
        raise RequestError("rendered")

    engine: Any = SimpleNamespace(
        generation_defaults=dict, context_length=4096, longest_token=100, vision=SimpleNamespace(decode=rendered)
    )
    profile = Profile("m", ("completion", "vision"))
    route = GenerationRoute(Chat(), Adapters())
    route.serve(engine, profile)
    sink: Any = Sink()
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        name, clients = json.loads(line)
        body = body_of(name)
        arguments: tuple[Any, ...] = ()
        if hasattr(frames(), "Form"):
            from vllama.protocol import checked_record

            form = frames().Form
            record = checked_record.encode(ChatRequest.parse(body)) if name == "image" else None
            body, arguments = record or body, (form.RECORD if record else form.CHECKED,)
        before = time.process_time_ns()
        for _ in range(REQUESTS[name] // clients):
            await asyncio.gather(*(route.answer(body, 0, sink, profile, *arguments) for _ in range(clients)))
        print((time.process_time_ns() - before) / 1000 / REQUESTS[name], flush=True)


def start(*arguments: str, checkout: str = "", has_key: bool = False, **pipes: Any) -> subprocess.Popen[str]:
    """Start this script in another process, with the modules of a checkout."""
    path = os.pathsep.join([checkout, f"{checkout}/tests"]) if checkout else os.environ["PYTHONPATH"]
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore"}
    if has_key:
        environment[KEY] = secrets.token_urlsafe(32)
    command = [sys.executable, "-P", __file__, *arguments]
    return subprocess.Popen(
        command, text=True, env=environment, stdout=subprocess.PIPE, **{"stdin": subprocess.DEVNULL, **pipes}
    )


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout", nargs=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", choices=["gateway", "worker"], action="append")
    parser.add_argument("--keys", action="store_true")
    options = parser.parse_args()
    print("| µs of CPU per request | clients | before | after |\n|---|---|---|---|")
    for side in options.side or ["gateway", "worker"]:
        sides = [
            start(side, checkout=str(Path(one).resolve()), has_key=options.keys and number == 1, stdin=subprocess.PIPE)
            for number, one in enumerate(options.checkout)
        ]
        for name in REQUESTS:
            for clients in CLIENTS:
                found: list[list[float]] = [[], []]
                for number in range(options.rounds + 1):
                    for index, process in enumerate(sides):
                        assert process.stdin
                        assert process.stdout
                        process.stdin.write(json.dumps([name, clients]) + "\n")
                        process.stdin.flush()
                        value = float(process.stdout.readline())
                        if number:  # the first only warms up
                            found[index].append(value)
                before, after = map(statistics.median, found)
                print(f"| {side}, {name} | {clients} | {before:.0f} | {after:.0f} |", flush=True)
        for process in sides:
            assert process.stdin
            process.stdin.close()
            process.wait()


if __name__ == "__main__":
    parts = {"gateway": measure_gateway, "worker": measure_worker}
    if sys.argv[1] in parts:
        import uvloop

        uvloop.run(parts[sys.argv[1]]())  # as `vllama serve`
    elif sys.argv[1] == "stand-in":
        stand_in(sys.argv[2])
    elif sys.argv[1] == "ask":
        ask(int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
    else:
        main()
