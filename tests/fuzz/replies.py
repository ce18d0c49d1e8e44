"""Send requests, and read what comes back."""

from __future__ import annotations

import http.client
import io
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Self, cast
from urllib.parse import urlsplit

from fuzz.requests import Sent, head

PATIENCE = 120.0
"""Seconds without a byte after which a reply is given up: a model may be loaded meanwhile."""

_MOST = 4 << 20


@dataclass(frozen=True)
class Reply:
    """The consequence of a request.

    `status` is 0 without a reply. `problem` says how the connection failed: "dropped" (closed without a reply),
    "cut" (closed within a reply), "hung" (nothing came for a long time) or "unusable" (a further request on the same
    connection was not answered).
    """

    status: int = 0
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    seconds: float = 0.0
    problem: str = ""

    @property
    def content_type(self) -> str:
        """The media type, without parameters."""
        return dict(self.headers).get("content-type", "").partition(";")[0]


def ask(url: str, sent: Sent) -> Reply:
    """Send a request on a connection of its own, and return the first reply."""
    parts = urlsplit(url)
    began = time.monotonic()
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=PATIENCE) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with suppress(OSError):  # the server may close early, after an error
            _send(connection, sent)
        incoming = _Incoming(socket.SocketIO(connection, "rb"))
        reply = _read(incoming, sent.method)
        seconds = time.monotonic() - began
        problem = reply.problem
        if not sent.is_whole and problem in {"dropped", "cut"}:
            problem = ""  # nobody was owed a reply
        elif sent.is_reusable and not problem and not _closes(reply):
            problem = "" if _answers_again(connection, incoming) else "unusable"
    return Reply(reply.status, reply.headers, reply.body, seconds, problem)


class _Incoming(io.BufferedReader):
    """The bytes that a connection receives. The end of a reply leaves it open, with the bytes that follow the reply."""

    def makefile(self, mode: str) -> Self:
        """Return itself, for http.client, which takes a socket."""
        del mode
        return self

    def close(self) -> None:
        """Do nothing: the connection is closed by its owner."""


def _send(connection: socket.socket, sent: Sent) -> None:
    size = max(1, -(-len(sent.data) // sent.pieces))
    for at in range(0, len(sent.data), size):
        connection.sendall(sent.data[at : at + size])
    if not sent.is_whole:
        connection.shutdown(socket.SHUT_WR)


def _read(incoming: _Incoming, method: str) -> Reply:
    reply = http.client.HTTPResponse(cast("socket.socket", incoming), method=method or "GET")
    status, body = 0, io.BytesIO()
    headers: tuple[tuple[str, str], ...] = ()
    try:
        reply.begin()
        status = reply.status
        headers = tuple((name.lower(), value) for name, value in reply.getheaders())
        while (part := reply.read1(1 << 16)) and body.tell() < _MOST:
            body.write(part)
        if reply.length:  # bytes that never came
            return Reply(status, headers, body.getvalue(), problem="cut")
    except TimeoutError:
        return Reply(status, headers, body.getvalue(), problem="hung")
    except (http.client.HTTPException, OSError):
        return Reply(status, headers, body.getvalue(), problem="cut" if status else "dropped")
    finally:
        reply.close()
    return Reply(status, headers, body.getvalue())


def _closes(reply: Reply) -> bool:
    lines = dict(reply.headers)
    return lines.get("connection", "").lower() == "close" or not {"content-length", "transfer-encoding"} & lines.keys()


def _answers_again(connection: socket.socket, incoming: _Incoming) -> bool:
    with suppress(OSError):
        connection.sendall(head("GET", "/api/version", [("Host", "localhost")]))
        return _read(incoming, "GET").status == 200
    return False
