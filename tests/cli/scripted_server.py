"""A server that answers from a script, over real HTTP on loopback, and keeps what it was asked."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

PATIENCE = 30.0
"""Seconds after which a step that never comes fails a test."""

_RECORDED = Path(__file__).with_name("recorded")


def _recorded(name: str) -> bytes:
    """Return a body that Ollama 0.24.0 gave (show without its list of tensors)."""
    return (_RECORDED / name).read_bytes()


TAGS = _recorded("tags.json")
PS = _recorded("ps.json")
SHOW = _recorded("show.json")
LOADED = _recorded("loaded.json")
UNLOADED = _recorded("unloaded.json")
GENERATED = _recorded("generated.ndjson").splitlines(keepends=True)
GENERATED_TEXT = "The answer to this classic question lies in"
NO_MODELS = b'{"models":[]}'
NOT_FOUND = b"""{"error":"model 'nope' not found"}"""

Piece = bytes | Callable[["Handler"], object]


@dataclass(frozen=True)
class Reply:
    """An answer: a body, or the pieces of a stream. A function among the pieces is called in its turn."""

    pieces: Sequence[Piece]
    status: int = 200
    content_type: str = "application/json; charset=utf-8"
    cut: bool = False
    """Whether the connection breaks after the pieces, in the middle of the answer."""


def body(text: bytes, status: int = 200, content_type: str = "application/json; charset=utf-8") -> Reply:
    return Reply((text,), status, content_type)


def stream(*pieces: Piece, cut: bool = False) -> Reply:
    return Reply(pieces, content_type="application/x-ndjson", cut=cut)


def chat_pieces(*texts: str) -> list[bytes]:
    """Return the lines of a chat answer that consists of these pieces."""
    texts_and_end: list[dict[str, Any]] = [
        *({"message": {"role": "assistant", "content": text}, "done": False} for text in texts),
        {"message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "stop", "eval_count": 2},
    ]
    return [json.dumps({"model": "smollm2:135m", **record}).encode() + b"\n" for record in texts_and_end]


@dataclass
class ScriptedServer:
    """What it will answer, and what it was asked."""

    url: str = ""
    client_left: Event = field(default_factory=Event)
    """Set when a client closes its connection before its answer is complete."""
    requests: list[tuple[str, str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    _script: dict[tuple[str, str], list[Reply]] = field(default_factory=dict)

    def on(self, method: str, path: str, *replies: Reply) -> None:
        """Answer requests to this path with these replies in turn, and on with the last one."""
        self._script[method, path] = list(replies)

    def bodies(self, path: str) -> list[Any]:
        return [sent for _, asked, sent in self.requests if asked == path]

    def reply_to(self, method: str, path: str) -> Reply:
        replies = self._script.get((method, path))
        if replies is None:
            return body(b"404 page not found", 404, "text/plain")
        return replies.pop(0) if len(replies) > 1 else replies[0]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    script: ScriptedServer

    def handle(self) -> None:
        try:
            super().handle()
        except ConnectionError:
            self.script.client_left.set()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def wait_for_client_to_leave(self) -> None:
        self.connection.settimeout(PATIENCE)
        assert self.rfile.read(1) == b""
        self.script.client_left.set()

    def _answer(self) -> None:
        text = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.script.requests.append((self.command, self.path, json.loads(text) if text else None))
        self.script.headers.append(dict(self.headers))
        reply = self.script.reply_to(self.command, self.path)
        self.send_response(reply.status)
        self.send_header("Content-Type", reply.content_type)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in reply.pieces:
            if isinstance(piece, bytes):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            else:
                piece(self)
        if reply.cut or self.script.client_left.is_set():
            self.close_connection = True
        else:
            self.wfile.write(b"0\r\n\r\n")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Keep quiet."""


@contextmanager
def running_server() -> Iterator[ScriptedServer]:
    script = ScriptedServer()
    handler = type("ScriptedHandler", (Handler,), {"script": script})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        script.url = f"http://127.0.0.1:{httpd.server_port}"
        thread = Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield script
        finally:
            httpd.shutdown()
            thread.join()
