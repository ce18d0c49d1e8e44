"""HTTP to a worker, for vLLM's own routes: connections that are kept, and replies that are relayed as they are."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httptools

from vllama.errors import EngineError, WorkerDied
from vllama.gateway.channel import not_reached
from vllama.gateway.relay import Header, Relay, RelayMaker

# These belong to a connection and not to the message.
_HOP_BY_HOP = frozenset({b"connection", b"keep-alive", b"transfer-encoding", b"upgrade", b"date", b"server"})
# The gateway has judged the origin: whose reply it is, the worker's CORS handler cannot know.
_NOT_PASSED_ON = frozenset({*_HOP_BY_HOP, b"vary"})
# These are about the client's own exchange with us. The gateway has judged the origin and answers it itself.
_NOT_FORWARDED = frozenset({*_HOP_BY_HOP, b"host", b"content-length", b"expect", b"origin"})


class Connection(asyncio.Protocol):
    """One HTTP/1.1 connection to a worker, which serves one exchange at a time."""

    def __init__(self, idle: list[Connection], busy: set[Connection]) -> None:
        """Take the list in which an idle connection waits for its next exchange, and the set of those that do not."""
        self._idle = idle
        self._busy = busy
        self._transport: Any = None
        self._parser: Any = None
        self._relay: Relay | None = None
        self._headers: list[Header] = []
        self._body: list[bytes] = []
        self._complete = False
        self.is_open = False

    async def exchange(self, request: bytes, make_relay: RelayMaker) -> None:
        """Send the request and relay the reply.

        Raises WorkerDied where the worker's connection ends before its reply does. Cancelling closes the
        connection, by which the worker knows that nobody listens any more.
        """
        if not self.is_open:
            raise WorkerDied
        self._parser = httptools.HttpResponseParser(self)
        self._headers, self._body, self._complete = [], [], False
        self._relay = relay = make_relay(self._slow_down)
        self._busy.add(self)
        self._transport.write(request)
        try:
            await relay.finished()
        finally:
            self._busy.discard(self)
            self._relay = None
            # The server reports the end of a reply as if the client had left: cancelled or not, what counts is the end.
            if relay.is_complete and self.is_open:
                self._idle.append(self)
            else:
                self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Parse the worker's bytes and relay the body that they carry."""
        if self._relay is None:
            self._transport.abort()  # nobody asked
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._relay.fail(WorkerDied())
            return
        if self._body or self._complete:
            body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
            self._body.clear()
            self._relay.body(body, last=self._complete)

    def on_header(self, name: bytes, value: bytes) -> None:
        """httptools: keep a header of the message."""
        name = name.lower()
        if name not in _NOT_PASSED_ON:
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """httptools: pass the head on."""
        assert self._relay is not None  # noqa: S101 - data is parsed only during an exchange
        self._relay.head(self._parser.get_status_code(), self._headers)

    def on_body(self, body: bytes) -> None:
        """httptools: keep a piece of the body until the data that came with it has been parsed."""
        self._body.append(body)

    def on_message_complete(self) -> None:
        """httptools: note the end of the reply."""
        self._complete = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Become usable."""
        self._transport = transport
        self.is_open = True

    def connection_lost(self, exc: Exception | None) -> None:
        """End an exchange that was not complete."""
        del exc
        self.is_open = False
        if self in self._idle:
            self._idle.remove(self)
        if self._relay is not None and not self._complete:
            self._relay.fail(WorkerDied())

    def end(self, error: EngineError) -> None:
        """End the exchange under way with this error."""
        if self._relay is not None:
            self._relay.fail(error)

    def close(self) -> None:
        """Close it."""
        self._transport.abort()

    def _slow_down(self, slow: bool) -> None:
        if self._transport.is_closing():
            return
        if slow:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()


class Pool:
    """Idle connections to workers, by socket. Every connection has one user at a time."""

    def __init__(self) -> None:
        self._idle: dict[Path, list[Connection]] = {}
        self._busy: set[Connection] = set()

    async def acquire(self, socket: Path) -> Connection:
        """An open connection.

        Raises WorkerDied where nothing listens, EngineError where this process cannot connect.
        """
        idle = self._idle.setdefault(socket, [])
        if idle:
            return idle.pop()
        try:
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_unix_connection(lambda: Connection(idle, self._busy), str(socket))
        except OSError as error:
            raise not_reached(error) from error
        return connection

    def end(self, error: EngineError) -> None:
        """End all exchanges under way with this error."""
        for connection in list(self._busy):
            connection.end(error)

    def close(self) -> None:
        """Close all idle connections."""
        for connections in self._idle.values():
            for connection in list(connections):
                connection.close()
        self._idle.clear()


def request_bytes(method: str, target: bytes, headers: Iterable[Header], body: bytes) -> bytes:
    """An HTTP/1.1 request with its whole body. Headers of the client's own connection are left out."""
    lines = [method.encode(), b" ", target, b" HTTP/1.1\r\nhost: worker\r\n"]
    for name, value in headers:
        if name not in _NOT_FORWARDED:
            lines += [name, b": ", value, b"\r\n"]
    lines += [b"content-length: %d\r\n\r\n" % len(body), body]
    return b"".join(lines)
