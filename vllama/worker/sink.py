"""Destinations of replies: an HTTP client of the worker, or the channel to the gateway."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from vllama.asgi import Receive, Send, cancelled_on_disconnect, read_body
from vllama.errors import BodyTooLarge, VllamaError
from vllama.ollama.status import JSON, error_body, error_line, status_of
from vllama.protocol.token_counts import TokenCounts


class Sink(Protocol):
    """Takes one reply: `reply`, or `start` and then `write` up to the one with `last`; `fail` ends either.

    `count` comes before the end, if at all.
    """

    def add_headers(self, headers: tuple[tuple[bytes, bytes], ...]) -> None:
        """Send these headers with the reply."""

    def count(self, counts: TokenCounts) -> None:
        """Tell the gateway the token counts of the request."""

    async def reply(self, status: int, content_type: str, body: bytes) -> None:
        """Send a complete reply."""

    async def start(self, content_type: str) -> None:
        """Start a stream with status 200."""

    async def write(self, body: bytes, *, last: bool) -> None:
        """Send a piece of the stream; waits while the receiver is too slow."""

    async def fail(self, error: VllamaError) -> None:
        """End an incomplete reply with the error's status or, after the start of a stream, in the stream."""


class HttpSink:
    """An ASGI server's client."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._started = False
        self._headers: tuple[tuple[bytes, bytes], ...] = ()

    def add_headers(self, headers: tuple[tuple[bytes, bytes], ...]) -> None:
        """Send these headers with the reply."""
        self._headers += headers

    def count(self, counts: TokenCounts) -> None:
        """Do nothing: without a gateway, no keys are counted."""

    async def reply(self, status: int, content_type: str, body: bytes) -> None:
        """Send a complete reply."""
        headers = [(b"content-type", content_type.encode()), (b"content-length", b"%d" % len(body)), *self._headers]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self.write(body, last=True)

    async def start(self, content_type: str) -> None:
        """Start a stream with status 200."""
        self._started = True
        headers = [(b"content-type", content_type.encode()), *self._headers]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def write(self, body: bytes, *, last: bool) -> None:
        """Send a piece of the stream."""
        await self._send({"type": "http.response.body", "body": body, "more_body": not last})

    async def fail(self, error: VllamaError) -> None:
        """End an incomplete reply."""
        if self._started:
            await self.write(error_line(str(error)), last=True)
        else:
            await self.reply(status_of(error), JSON, error_body(str(error)))


async def answer_over_http(
    receive: Receive, send: Send, largest_body: int, answer: Callable[[bytes, Sink], Awaitable[None]]
) -> None:
    """Read the body of a request, of at most `largest_body` bytes, and answer it; a client that leaves cancels that."""
    sink = HttpSink(send)
    try:
        body = await read_body(receive, most=largest_body)
    except BodyTooLarge as error:
        await sink.fail(error)
        return
    async with cancelled_on_disconnect(receive):
        await answer(body, sink)
