"""The byte path: a worker's reply reaches the client unparsed, chunk by chunk.

For each token of each stream this code runs once, so it does as little as asyncio allows: a protocol
(no streams, no queues, no task switches) takes bytes from the worker's socket and hands them to the server's
`send` in the same call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator, Iterable
from pathlib import Path
from typing import Any

import httptools

from vllama.asgi import Send
from vllama.errors import WorkerDied

Header = tuple[bytes, bytes]

_HOP_BY_HOP = frozenset({b"connection", b"keep-alive", b"transfer-encoding", b"upgrade", b"date", b"server"})


class _Resume:
    """Awaits the rest of a coroutine that was already run up to its first suspension."""

    __slots__ = ("_coroutine", "_future")

    def __init__(self, coroutine: Coroutine[Any, Any, None], future: Any) -> None:
        self._coroutine, self._future = coroutine, future

    def __await__(self) -> Generator[Any, Any, None]:
        future = self._future
        while True:
            yield future
            try:
                future = self._coroutine.send(None)
            except StopIteration:
                return


class Connection(asyncio.Protocol):
    """One HTTP/1.1 connection to a worker, which serves one exchange at a time."""

    def __init__(self, idle: list[Connection]) -> None:
        """Take the list in which an idle connection waits for its next exchange."""
        self._idle = idle
        self._transport: Any = None
        self._parser: Any = None
        self._send: Send | None = None
        self._extra_headers: tuple[Header, ...] = ()
        self._done: asyncio.Future[None] | None = None
        self._headers: list[Header] = []
        self._body: list[bytes] = []
        self._started = False
        self._complete = False
        self._blocked: asyncio.Task[None] | None = None
        self.is_open = False
        self.status = 0
        self.content_type = b""
        self.last_byte = b""

    @property
    def started(self) -> bool:
        """Whether the client has got a status line."""
        return self._started

    # the exchange, in order of time

    async def exchange(self, request: bytes, send: Send, extra_headers: tuple[Header, ...]) -> None:
        """Send the request, and the reply to `send`; return when it is complete.

        Raises WorkerDied where the worker's connection ends before its reply does. Cancelling closes the
        connection, by which the worker knows that nobody listens any more.
        """
        if not self.is_open:
            raise WorkerDied
        self._send, self._extra_headers = send, extra_headers
        self._parser = httptools.HttpResponseParser(self)
        self._headers, self._body = [], []
        self._started = self._complete = False
        self.content_type = self.last_byte = b""
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        try:
            await self._done
        except BaseException:
            self._transport.abort()
            raise
        finally:
            self._send = self._done = None
        if self.is_open:
            self._idle.append(self)

    def data_received(self, data: bytes) -> None:
        """Parse the worker's bytes and pass on what they carry."""
        if self._done is None:
            self._transport.abort()  # nobody asked
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._finish(WorkerDied())
            return
        if self._blocked is None:
            self._pass_on()

    # httptools' callbacks

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header, unless it belongs to the connection and not to the reply."""
        name = name.lower()
        if name == b"content-type":
            self.content_type = value
        if name not in _HOP_BY_HOP:
            self._headers.append((name, value))

    def on_body(self, body: bytes) -> None:
        """Keep a piece of the body until the data that came with it has been parsed."""
        self._body.append(body)

    def on_message_complete(self) -> None:
        """Note the end of the reply."""
        self._complete = True

    # to the client

    def _pass_on(self) -> None:
        if not self._started:
            if not (self._body or self._complete):
                return  # the status line goes with the first bytes: until then it can still become an error
            self._started = True
            self.status = self._parser.get_status_code()
            headers = [*self._headers, *self._extra_headers]
            if not self._push({"type": "http.response.start", "status": self.status, "headers": headers}):
                return
        if self._body or self._complete:
            body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
            self._body.clear()
            if body:
                self.last_byte = body[-1:]
            complete = self._complete
            if self._push({"type": "http.response.body", "body": body, "more_body": not complete}) and complete:
                self._finish(None)

    def _push(self, message: dict[str, Any]) -> bool:
        """Run `send` at once; where the client is slower than the worker, go on later and return False."""
        assert self._send is not None  # noqa: S101 - set for as long as an exchange lasts
        coroutine: Any = self._send(message)
        try:
            future = coroutine.send(None)
        except StopIteration:
            return True
        self._transport.pause_reading()
        last = message.get("more_body") is False
        self._blocked = asyncio.ensure_future(self._unblock(_Resume(coroutine, future), last=last))
        return False

    async def _unblock(self, rest: _Resume, *, last: bool) -> None:
        try:
            await rest
        finally:
            self._blocked = None
        if self._done is None:
            return
        if last:
            self._finish(None)
            return
        if not self._transport.is_closing():
            self._transport.resume_reading()
        self._pass_on()

    def _finish(self, error: Exception | None) -> None:
        if self._done is None or self._done.done():
            return
        if error is None:
            self._done.set_result(None)
        else:
            self._done.set_exception(error)

    # the connection

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
        if not self._complete:
            self._finish(WorkerDied())

    def close(self) -> None:
        """Close it."""
        if self._transport is not None:
            self._transport.abort()


class Pool:
    """Idle connections to workers, by socket. Every connection has one user at a time."""

    def __init__(self) -> None:
        self._idle: dict[Path, list[Connection]] = {}

    async def acquire(self, socket: Path) -> Connection:
        """An open connection. Raises WorkerDied where nothing listens."""
        idle = self._idle.setdefault(socket, [])
        if idle:
            return idle.pop()
        try:
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_unix_connection(lambda: Connection(idle), str(socket))
        except OSError as error:
            raise WorkerDied from error
        return connection

    def forget(self, socket: Path) -> None:
        """Close the idle connections to a worker that is no more."""
        for connection in self._idle.pop(socket, []):
            connection.close()

    def close(self) -> None:
        """Close all idle connections."""
        for socket in list(self._idle):
            self.forget(socket)


def request_bytes(method: str, target: bytes, headers: Iterable[Header], body: bytes) -> bytes:
    """An HTTP/1.1 request with its whole body. Headers that belong to the client's own connection are left out."""
    lines = [method.encode(), b" ", target, b" HTTP/1.1\r\nhost: worker\r\n"]
    for name, value in headers:
        if name not in _HOP_BY_HOP and name not in {b"host", b"content-length", b"expect"}:
            lines += [name, b": ", value, b"\r\n"]
    lines += [b"content-length: %d\r\n\r\n" % len(body), body]
    return b"".join(lines)
