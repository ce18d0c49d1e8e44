"""A program in the place of `vllama.worker.launch`: `python stand_in_worker.py BEHAVIOUR ARGUMENTS…`."""

from __future__ import annotations

import json
import os
import signal
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from itertools import count, repeat
from multiprocessing import resource_tracker, shared_memory
from pathlib import Path
from typing import Any

from vllama.protocol.frames import FrameReader, Kind, frame
from vllama.protocol.paths import FORGET_COPY, PREPARE_SLEEP, SLEEP, WAKE
from vllama.worker import lifeline, spare

TOKENS_REFUSED = 3
"""Requests for a token to which `reluctant` answers that it is not ready yet."""


SLEEPING = {SLEEP: "sleep", WAKE: "wake", PREPARE_SLEEP: "prepare", FORGET_COPY: "forget"}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    tries: Iterator[int] = count(TOKENS_REFUSED)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.path in SLEEPING:
            self.control(SLEEPING[self.path], json.loads(body))
            return
        tried = next(self.tries)
        print(f"asked for a token: {tried}", flush=True)
        self.reply({"done": True} if tried >= TOKENS_REFUSED else {"done": False})

    def do_GET(self) -> None:
        self.reply({"object": "list", "data": [{"id": "m", "max_model_len": 2048}]})

    def control(self, act: str, record: dict[str, Any]) -> None:
        """Sleep or wake, unless a file beside the socket says that this fails or lasts for ever."""
        print(f"{act} with {record}", flush=True)
        if Path(f"{self.server.server_address}.broken").exists():
            self.reply({"error": "weights changed while the model slept"}, status=500)
        elif Path(f"{self.server.server_address}.mute").exists():
            threading.Event().wait()
        else:
            self.reply({"seconds": 0.25})

    def reply(self, value: object, status: int = 200) -> None:
        body = json.dumps(value, separators=(",", ":")).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Keep quiet."""


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


def ready(*, processes: int = 1) -> None:
    """Serve, with the channels of so many API server processes; end politely on SIGTERM."""
    path = sys.argv[sys.argv.index("--uds") + 1]
    Path(f"{path}.told").write_text(json.dumps({"arguments": sys.argv[2:], "environment": dict(os.environ)}))
    with Server(path, Handler) as server:
        signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
        for rank in range(processes):
            Path(f"{path}.{rank}of{processes}").touch()
        server.serve_forever(poll_interval=0.01)


def reluctant() -> None:
    """Serve, and refuse the first requests for a token."""
    Handler.tries = count()
    ready()


def answering(kinds: frozenset[int] = frozenset({Kind.PULSE})) -> None:
    """Serve, with a channel that answers frames of these kinds."""

    class Channel(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            frames = FrameReader()
            while data := self.request.recv(1024):
                for kind, stream, _ in frames.feed(data):
                    if kind in kinds:
                        self.request.sendall(frame(Kind(kind), stream))
                        print("answered", flush=True)

    path = sys.argv[sys.argv.index("--uds") + 1]
    with socketserver.ThreadingUnixStreamServer(f"{path}.0of1", Channel) as channel:
        channel.daemon_threads = True
        threading.Thread(target=channel.serve_forever, daemon=True).start()
        ready(processes=0)


def sharing() -> None:
    """Serve, with a segment of shared memory that nobody but it can remove."""
    segment = _share()
    ready()
    segment.close()


def sharing_while_loading() -> None:
    """Load for ever, with a segment of shared memory that nobody but it can remove."""
    segment = _share()
    silent()
    segment.close()


def _share() -> shared_memory.SharedMemory:
    segment = shared_memory.SharedMemory(create=True, size=4096)
    resource_tracker.unregister(f"/{segment.name}", "shared_memory")
    print(f"segment {segment.name}", flush=True)
    return segment


def mute() -> None:
    """Serve, with a channel that answers nothing."""
    answering(frozenset())


def refusing() -> None:
    """Serve, fail at each request for a token, and write of it each time."""
    Handler.tries = repeat(-1)
    print("KeyError: 'lm_head'")
    ready()


def one_channel_of_two() -> None:
    """Have only half of its channels yet, and say nothing any more."""
    path = sys.argv[sys.argv.index("--uds") + 1]
    Path(f"{path}.0of2").touch()
    silent()


def two_processes() -> None:
    ready(processes=2)


def usage() -> None:
    """Refuse a flag as vLLM does."""
    print("\x1b[0;36m(APIServer pid=1)\x1b[0;0m WARNING error: nothing to worry about")
    print("usage: vllm serve [model_tag] [options]\nvllm serve: error: unrecognized arguments: --foo\n\nHint: no --foo")
    sys.exit(2)


def crash() -> None:
    """Write more lines than anybody wants to read, in colour and with a progress bar, and fail."""
    for number in range(40):
        print(f"\x1b[0;36m(EngineCore pid=1)\x1b[0;0m line {number}\n")
    print("Loading:   0%\rLoading:  50%\rLoading: 100%\r\n\x1b[?25l\x1b[1;31mRuntimeError: no memory\x1b[0m")
    sys.exit(1)


def wants_code() -> None:
    """Fail as vLLM does where a model's classes are in code that it does not run."""
    print("RuntimeError: Failed to load the model config. If the model is a custom model not yet available in the")
    print("HuggingFace transformers library, consider setting `trust_remote_code=True` in LLM or using the")
    print("`--trust-remote-code` flag in the CLI.")
    sys.exit(1)


def gpu_full() -> None:
    """Fail as PyTorch does where a GPU is full."""
    print("(EngineCore pid=1) ERROR 11-21 18:36:38 [core.py:1510] torch.OutOfMemoryError: CUDA out of memory. ", end="")
    print("Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.50 GiB is free.")
    sys.exit(1)


def chatty() -> None:
    """Write to the log until the gateway has cut it, then fail."""
    before = 0
    while (size := os.fstat(1).st_size) >= before:
        print("something that vLLM says", flush=True)
        before = size
    gpu_full()


def full_disk() -> None:
    """Fail as Python does where the disk is full."""
    print("(EngineCore pid=1) ERROR 11-21 18:36:38 [core.py:1510] OSError: ", end="")
    print("[Errno 28] No space left on device: '/caches/graph'")
    sys.exit(1)


def wordless() -> None:
    sys.exit(1)


def silent() -> None:
    signal.pause()


def stubborn() -> None:
    """Ignore SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.alarm(60)  # should the test be killed
    print("ready to ignore", flush=True)
    while True:
        signal.pause()


def parent() -> None:
    """Have a child in the same group that ignores SIGTERM; go politely itself."""
    with subprocess.Popen([sys.executable, __file__, "stubborn"], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        child.stdout.readline()
        print(f"child {child.pid}", flush=True)
        signal.pause()


def flags_are_fine() -> None:
    """Accept all that it is asked about."""
    assert sys.argv[2] == "--check-flags"


if __name__ == "__main__":
    if sys.argv[1] != "stubborn":  # as a child it has to outlive what a real worker's would not
        lifeline.tie()
    behaviour = sys.argv[1]
    if sys.argv[2:] == ["--spare"]:
        if (ordered := spare.wait_for_order()) is None:
            sys.exit(0)
        sys.argv[1:] = [behaviour, *ordered]
    globals()[behaviour]()
