"""HTTP client for vLLM's own routes in a worker, with kept connections and unchanged replies."""

from __future__ import annotations

import asyncio
import select
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httptools

from vllama.errors import EngineError, WorkerDied
from vllama.gateway.channel_client import not_reached
from vllama.gateway.relay import Header, Relay, RelayMaker

# These belong to the connection, not to the message.
_HOP_BY_HOP = frozenset({b"connection", b"keep-alive", b"transfer-encoding", b"upgrade", b"date", b"server"})
# The gateway has checked the origin, which the worker's CORS handler cannot do.
_NOT_PASSED_ON = frozenset({*_HOP_BY_HOP, b"vary"})
# These concern the client's own exchange with us. The gateway has checked the origin, and workers need no secrets.
_SECRETS = frozenset({b"authorization", b"proxy-authorization", b"x-api-key", b"cookie"})
_NOT_FORWARDED = frozenset({*_HOP_BY_HOP, *_SECRETS, b"host", b"content-length", b"expect", b"origin"})


class NeverSent(WorkerDied):
    """The worker closed a kept connection before it had the whole request, which can be sent again."""


class Connection(asyncio.Protocol):
    """One HTTP/1.1 connection to a worker, which serves one exchange at a time."""

    def __init__(self, pool: HttpConnectionPool, socket: Path) -> None:
        """Take the pool to which the connection returns after each exchange, and the worker's socket."""
        self._pool = pool
        self.socket = socket
        self._transport: Any = None
        self._parser: Any = None
        self._relay: Relay | None = None
        self._headers: list[Header] = []
        self._is_chunked = False
        self._body: list[bytes] = []
        self._pieces: list[bytes] = []
        self._complete = False
        self._may_stay = False
        self.is_open = False

    async def exchange(self, request: bytes, make_relay: RelayMaker) -> None:
        """Send the request and relay the reply.

        Raises WorkerDied if the worker's connection ends before its reply, NeverSent if that was before the request.
        Cancelling closes the connection, which tells the worker that the client has disconnected.
        """
        if not self.is_open:
            raise NeverSent
        self._parser = httptools.HttpResponseParser(self)
        self._headers, self._is_chunked, self._complete = [], False, False
        self._body, self._pieces = [], []
        self._relay = relay = make_relay(self._slow_down)
        self._transport.write(request)
        try:
            await relay.finished()
        finally:
            self._relay = None
            # uvicorn reports the end of a reply like a disconnect, so check the end first, cancelled or not.
            if relay.is_complete and self._may_stay and self.is_open:
                self._pool.release(self)
            else:
                self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Parse the worker's bytes and relay the body that they carry."""
        if self._relay is None:
            self._transport.abort()  # no request is running
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._relay.fail(WorkerDied())
            return
        if self._body and not self._is_chunked:
            self.on_chunk_complete()
        pieces, self._pieces = self._pieces, []
        for piece in pieces[:-1]:
            self._relay.body(piece, last=False)
        if pieces or self._complete:
            self._relay.body(pieces[-1] if pieces else b"", last=self._complete)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Store a header of the message (httptools callback)."""
        name = name.lower()
        if name not in _NOT_PASSED_ON:
            self._headers.append((name, value))
        elif name == b"transfer-encoding":
            self._is_chunked = b"chunked" in value.lower()

    def on_headers_complete(self) -> None:
        """Pass status and headers on (httptools callback)."""
        assert self._relay is not None  # noqa: S101 - data is parsed only during an exchange
        self._may_stay = self._parser.should_keep_alive()
        self._relay.head(self._parser.get_status_code(), self._headers)

    def on_body(self, body: bytes) -> None:
        """Store a part of the body until its chunk is complete (httptools callback)."""
        self._body.append(body)

    def on_chunk_complete(self) -> None:
        """Keep the chunk for the relay as one piece, because clients take a chunk for a record (httptools callback)."""
        if self._body:
            self._pieces.append(self._body[0] if len(self._body) == 1 else b"".join(self._body))
            self._body.clear()

    def on_message_complete(self) -> None:
        """Record the end of the reply (httptools callback)."""
        self._complete = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Store the transport of the new connection."""
        self._transport = transport
        self.is_open = True

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail an incomplete exchange."""
        self.is_open = False
        self._pool.forget(self)
        if self._relay is not None and not self._complete:
            # The system refuses bytes for a closed socket. uvicorn's applications get no incomplete body.
            self._relay.fail(NeverSent() if isinstance(exc, BrokenPipeError) else WorkerDied())

    @property
    def is_quiet(self) -> bool:
        """Whether the worker has neither closed the connection nor sent anything that was not asked for.

        The event loop may not have read it yet: vLLM closes idle connections after 5 seconds.
        """
        if not self.is_open or self._transport.is_closing():
            return False
        poll = select.poll()
        poll.register(self._transport.get_extra_info("socket").fileno(), select.POLLIN | select.POLLRDHUP)
        return not poll.poll(0)

    def end(self, error: EngineError) -> None:
        """End the running exchange with this error."""
        if self._relay is not None:
            self._relay.fail(error)

    def close(self) -> None:
        """Close the connection."""
        self._transport.abort()

    def _slow_down(self, slow: bool) -> None:
        if self._transport.is_closing():
            return
        if slow:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()


class HttpConnectionPool:
    """Open HTTP connections to workers: each has one user at a time, and a lost one is forgotten."""

    def __init__(self) -> None:
        self._idle: dict[Path, list[Connection]] = {}
        """By socket; no list is empty."""
        self._busy: set[Connection] = set()

    async def acquire(self, socket: Path) -> Connection:
        """Return an open connection for one exchange, a kept one if the worker has not closed it.

        Raises WorkerDied if no process listens, EngineError if this process cannot connect.
        """
        while socket in self._idle:
            connection = self._idle[socket][-1]
            self._take(connection)
            if connection.is_quiet:
                self._busy.add(connection)
                return connection
            connection.close()
        return await self.connect(socket)

    async def connect(self, socket: Path) -> Connection:
        """Return a new connection for one exchange. Raises the errors of `acquire`."""
        try:
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_unix_connection(lambda: Connection(self, socket), str(socket))
        except OSError as error:
            raise not_reached(error) from error
        if connection.is_open:
            self._busy.add(connection)
        return connection

    def release(self, connection: Connection) -> None:
        """Keep an open connection for the next exchange."""
        self._busy.discard(connection)
        self._idle.setdefault(connection.socket, []).append(connection)

    def forget(self, connection: Connection) -> None:
        """Drop a connection that is lost."""
        self._busy.discard(connection)
        self._take(connection)

    def end(self, error: EngineError) -> None:
        """End all running exchanges with this error."""
        for connection in list(self._busy):
            connection.end(error)

    def close(self) -> None:
        """Close all idle connections."""
        for connections in self._idle.values():
            for connection in connections:
                connection.close()
        self._idle.clear()

    def _take(self, connection: Connection) -> None:
        """Take a connection out of those that are idle, where it is one of them."""
        idle = self._idle.get(connection.socket, [])
        if connection in idle:
            idle.remove(connection)
            if not idle:
                del self._idle[connection.socket]


def request_bytes(method: str, target: bytes, headers: Iterable[Header], body: bytes) -> bytes:
    """Encode an HTTP/1.1 request with its body, without headers of the client's own connection."""
    lines = [method.encode(), b" ", target, b" HTTP/1.1\r\nhost: worker\r\n"]
    for name, value in headers:
        if name not in _NOT_FORWARDED:
            lines += [name, b": ", value, b"\r\n"]
    lines += [b"content-length: %d\r\n\r\n" % len(body), body]
    return b"".join(lines)
