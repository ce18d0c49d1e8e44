"""Uvicorn's HTTP/1 protocol, with limits, and made to serve clients that offer an upgrade or speak HTTP/1.0.

Every HTTP client of the JDK offers HTTP/2 (`Upgrade: h2c`) with its requests over plain TCP. An upgrade may be ignored
(RFC 9110, section 7.8), but httptools stops at the end of such a head and drops the body. HTTP/1.0 has no chunks,
which uvicorn sends to all clients. Internals of uvicorn (alike in 0.34 and 0.54): the parser's callbacks, and the
request's `cycle` with its `send`, `pipeline`, and `FlowControl`.

Limits (vllama.http_limits): uvicorn has none for headers, trailers, time and the requests that follow one which is not
answered yet. It writes its 400 into a reply that is being streamed, and takes trailers for headers.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from typing import Any

import httptools
import orjson
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import (
    HEADER_RE,
    HEADER_VALUE_RE,
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from vllama.http_limits import Connections, Refusal

access = logging.getLogger("vllama.access")

_OFFER = frozenset({b"upgrade", b"http2-settings"})
"""Headers that belong to the offer, and their names as listed in `Connection`."""


_MALFORMED = Refusal(400, "invalid HTTP request")
_HEAD_TOO_LARGE = "request header fields too large: the maximum is {0.headers} headers with {0.head_size} bytes"
_TOO_MANY = Refusal(503, "too many connections; try again later")
_LINGER_SECONDS = 5.0
"""Time for a client to read an error before the connection is closed, although it still sends."""
_LEAST_PROGRESS = 1024
"""Bytes of a body that must arrive within the time limit, so that a byte now and then does not hold a request."""


class HttpProtocol(HttpToolsProtocol):
    """One client's connection."""

    cycle: Any
    """Uvicorn's state of the last request that was parsed; None before the first."""

    def __init__(self, *args: Any, counted: Connections | None = None, **kwargs: Any) -> None:
        """Take uvicorn's arguments, and the limits of the server."""
        super().__init__(*args, **kwargs)
        self.parser = _RequestParser(self)
        self._counted = counted or Connections()
        self._limits = self._counted.limits
        self._in_head = False
        self._in_body = False
        self._unread = 0  # bytes of a head or of trailers that the parser has not finished
        self._piece = 0
        self._received = 0
        self._number = 0
        self._refusal: Refusal | None = None
        self._is_refused = False
        self._timer: asyncio.TimerHandle | None = None
        self._trailers = _Trailers()
        self._running: RequestResponseCycle | None = None
        self.waits_since = math.inf

    # The connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start to wait for a request; refuse the connection if there are too many."""
        super().connection_made(transport)
        self.flow = _Flow(transport, self.pipeline)
        self.waits_since = self.loop.time()
        self._watch(self._limits.head_seconds)
        if not self._counted.has_room(self, self.connections):  # type: ignore[arg-type]
            self._refuse(_TOO_MANY)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the client."""
        self._unwatch()
        super().connection_lost(exc)
        if self._running is not None:  # uvicorn tells only the last request that was parsed
            self._running.disconnected = not self._running.response_complete
            self._running.message_event.set()

    def close_waiting(self) -> None:
        """Close the connection, which has no request in progress."""
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Parse the next bytes, unless the client has been refused."""
        if self._is_refused:
            return
        number, self._piece = self._number, len(data)
        held = len(self.cycle.body) if self._in_body else 0
        super().data_received(data)
        if self._has_all:
            return
        self._received += len(data)
        grows = self._in_body and (self.cycle.response_complete or len(self.cycle.body) > held)
        if grows:
            self.waits_since = self.loop.time()
        is_same = number == self._number and (self._in_head or self._in_body)
        self._unread = self._unread + len(data) if is_same and not grows else 0
        if self._unread > self._limits.head_size:
            self._refuse(self._too_large())
        elif self._timer is None:
            self._watch(self._limits.body_seconds if self._in_body else self._limits.head_seconds)

    @property
    def _has_all(self) -> bool:
        """Whether nothing more is expected: the client was refused, or waits for its reply."""
        return self._is_refused or self._is_answering

    @property
    def _is_answering(self) -> bool:
        """Whether the last request has come, and is not answered yet."""
        return not (self._in_head or self._in_body or self.cycle is None or self.cycle.response_complete)

    # Callbacks of the parser

    def on_message_begin(self) -> None:
        """Begin a request (httptools callback)."""
        super().on_message_begin()
        self._in_head, self._in_body = True, False
        self._number += 1

    def on_headers_complete(self) -> None:
        """Start the request, unless it comes again without its offer (httptools callback)."""
        self._check_head()
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise ValueError("CONNECT is for proxies")  # answered with 400
            return
        if not self.url.startswith(b"/"):
            self._read_target()
        if self.pipeline and len(self.pipeline) >= self._limits.pipelined:
            raise ValueError("too many requests follow one without a reply")  # closed after the replies before it
        super().on_headers_complete()
        if not self.pipeline:
            self._running = self.cycle
        self._in_head, self._in_body = False, True
        self._trailers.left = self._limits.headers
        self.headers = self._trailers  # what the scope has is not changed any more
        if self.scope["http_version"] == "1.0":
            cycle = self.cycle
            cycle.keep_alive = self.parser.should_keep_alive()
            cycle.waiting_for_100_continue = False
            cycle.send = Http10Reply(cycle).send

    def on_message_complete(self) -> None:
        """End the request's body (httptools callback)."""
        if not self.parser.should_upgrade():
            self._in_body = False
            self.waits_since = math.inf
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """Wait for the next request; a client that still sends its body has a few seconds to end it."""
        if self.cycle.response_complete:  # no other request follows
            self.waits_since = self.loop.time()
            if self._in_body:
                self._watch(_LINGER_SECONDS)
        if self.pipeline:
            self._running = self.pipeline[-1][0]  # which uvicorn starts now
        super().on_response_complete()

    def _check_head(self) -> None:
        """Raise an error that is answered with 431 if the head is too large."""
        limits = self._limits
        if len(self.headers) > limits.headers:
            self._refusal = self._too_large()
        elif self._unread + self._piece > limits.head_size:
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > limits.head_size:
                self._refusal = self._too_large()
        if self._refusal is not None:
            raise ValueError(self._refusal.message)

    def _too_large(self) -> Refusal:
        return Refusal(431, _HEAD_TOO_LARGE.format(self._limits))

    def _read_target(self) -> None:
        """Take the host of an absolute target for the Host header (RFC 9112, section 3.2.2), as Go does."""
        if self.url == b"*":
            return
        target = httptools.parse_url(self.url)
        if target.schema is None or not target.host:
            raise ValueError("the target is neither a path nor a URL")
        host = b"[%b]" % target.host if b":" in target.host else target.host
        host = host if target.port is None else b"%b:%d" % (host, target.port)
        self.headers[:] = [(name, value) for name, value in self.headers if name != b"host"]
        self.headers.append((b"host", host))

    # Refusals and time limits

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, or beyond a limit."""
        del msg
        self._refuse(self._refusal or _MALFORMED)

    def _refuse(self, refusal: Refusal) -> None:
        """Answer with an error and close; replies to earlier requests are completed first."""
        self._is_refused = True
        pending = self.cycle is not None and not self.cycle.response_complete
        if pending and self._in_body:
            if not self.pipeline:
                self._break_off(refusal)
                return
            self.pipeline.popleft()  # it waited for its turn, and its body will not be complete
            self._in_body = False
            self.cycle = self.pipeline[0][0] if self.pipeline else self._running
        if pending:
            self.cycle.keep_alive = False  # its end closes the connection
            self.flow.resume_reading()  # to notice when the client leaves
        else:
            self._send(refusal)

    def _break_off(self, refusal: Refusal) -> None:
        """End the running request, whose body is not complete."""
        self.cycle.disconnected = True
        self.cycle.message_event.set()
        if self.cycle.response_started:
            self.transport.close()
        else:
            self._send(refusal)

    def _send(self, refusal: Refusal) -> None:
        body = orjson.dumps({"error": refusal.message})
        headers = [
            *self.server_state.default_headers,
            (b"content-type", b"application/json; charset=utf-8"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
        ]
        lines = [b"%b: %b\r\n" % header for header in headers]
        self.transport.write(b"".join((STATUS_LINE[refusal.status], *lines, b"\r\n", body)))
        access.info("%3d              a connection: %s", refusal.status, refusal.message)
        if self.flow is not None:
            self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._watch(_LINGER_SECONDS)

    def _watch(self, seconds: float | None) -> None:
        self._unwatch()
        if seconds is not None:
            self._timer = self.loop.call_later(seconds, self._look, self._number, self._received)

    def _unwatch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self, number: int, received: int) -> None:
        """Check what has come since the timer was set; most requests come at once, so none is set for each."""
        self._timer = None
        if self._is_refused:
            self.transport.abort()
        elif self.transport.is_closing():
            return
        elif self._in_body:
            self._look_at_body(number, received)
        elif self._in_head and number == self._number:
            self._refuse(Refusal(408, "the request's headers did not arrive in time"))
        elif self._in_head:
            self._watch(self._limits.head_seconds)
        elif not self._is_answering and self.timeout_keep_alive_task is None:
            self.transport.close()  # nothing has come but empty lines

    def _look_at_body(self, number: int, received: int) -> None:
        if self.cycle.response_complete:
            self.transport.abort()
        elif self.cycle.waiting_for_100_continue:
            self._watch(self._limits.body_seconds)  # the client waits for us
        elif number == self._number and not self.flow.read_paused and self._received - received < _LEAST_PROGRESS:
            self._refuse(Refusal(408, "the request's body did not arrive in time"))
        else:
            self._watch(self._limits.body_seconds)

    def head_without_offer(self) -> bytes:
        """Return the head of the request that has just been parsed, without its offer of another protocol."""
        version = self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)]
        for name, value in self.headers:
            if name == b"connection":
                options = [option.strip() for option in value.split(b",")]
                value = b", ".join(option for option in options if option.lower() not in _OFFER)  # noqa: PLW2901
            if name not in _OFFER:
                lines.append(b"%b: %b" % (name, value))
        return b"\r\n".join([*lines, b"", b""])


class _Flow(FlowControl):
    """Flow control that reads nothing more while further requests wait for their turn."""

    def __init__(self, transport: asyncio.Transport, pipeline: deque[Any]) -> None:
        super().__init__(transport)
        self._pipeline = pipeline

    def resume_reading(self) -> None:
        """Read again, unless requests wait."""
        if not self._pipeline:
            super().resume_reading()


class _Trailers(list[tuple[bytes, bytes]]):
    """Trailers of a body, which are counted and dropped: none of them changes a request."""

    left = 0
    """How many may still come."""

    def append(self, trailer: tuple[bytes, bytes]) -> None:
        """Count a trailer. Raises ValueError, which is answered with 400, if there are too many."""
        del trailer
        self.left -= 1
        if self.left < 0:
            raise ValueError("too many trailers")


class _RequestParser(httptools.HttpRequestParser):  # type: ignore[misc]
    """Parser that reads a request which offers an upgrade as one that does not."""

    def __init__(self, protocol: HttpProtocol) -> None:
        self._protocol = protocol
        self._begin()

    def _begin(self) -> None:
        """Forget everything; an offer that also asks to close would else be the last that is read."""
        super().__init__(self._protocol)
        # As uvicorn does: what follows the last request of a connection is ignored.
        self.set_dangerous_leniencies(lenient_data_after_close=True)

    def feed_data(self, data: bytes) -> None:
        """Parse the next bytes of a connection. Raises httptools.HttpParserError."""
        while True:
            try:
                super().feed_data(data)
            except httptools.HttpParserUpgrade as offer:
                data = self._protocol.head_without_offer() + data[offer.args[0] :]
                self._begin()
            else:
                return


class Http10Reply:
    """Sender of the reply to an HTTP/1.0 client: without a known length the body lasts until the connection closes."""

    def __init__(self, cycle: RequestResponseCycle) -> None:
        """Take uvicorn's state of the request."""
        self._cycle = cycle

    async def send(self, message: Any) -> None:
        """Send one ASGI message of the reply."""
        cycle = self._cycle
        if cycle.flow.write_paused and not cycle.disconnected:
            await cycle.flow.drain()
        if cycle.disconnected:
            return
        if cycle.response_complete or cycle.response_started == (message["type"] == "http.response.start"):
            raise RuntimeError(f"unexpected ASGI message {message['type']!r}")
        if not cycle.response_started:
            cycle.response_started = True
            cycle.transport.write(self._head(message["status"], [*cycle.default_headers, *message.get("headers", ())]))
            return
        if cycle.scope["method"] != "HEAD":
            cycle.transport.write(message.get("body", b""))
        if not message.get("more_body", False):
            cycle.response_complete = True
            cycle.message_event.set()
            if not cycle.keep_alive:
                cycle.transport.close()
            cycle.on_response()

    def _head(self, status: int, headers: list[tuple[bytes, bytes]]) -> bytes:
        cycle = self._cycle
        if any(HEADER_RE.search(name) or HEADER_VALUE_RE.search(value) for name, value in headers):
            raise RuntimeError("invalid HTTP header")
        names = {name.lower() for name, _ in headers}
        has_end = b"content-length" in names or cycle.scope["method"] == "HEAD" or status in {204, 304}
        cycle.keep_alive = cycle.keep_alive and has_end and (b"connection", b"close") not in headers
        kept = [(name, value) for name, value in headers if name.lower() != b"connection"]
        kept.append((b"connection", b"keep-alive" if cycle.keep_alive else b"close"))
        lines = [b"%b: %b\r\n" % header for header in kept]
        return b"".join((STATUS_LINE[status].replace(b"/1.1", b"/1.0", 1), *lines, b"\r\n"))
