"""Where a reply goes: to an HTTP client of the worker, or into the channel to the gateway."""

from __future__ import annotations

from typing import Protocol

from vllama.asgi import Send
from vllama.errors import VllamaError
from vllama.ollama.status import JSON, error_body, error_line, status_of


class Sink(Protocol):
    """Takes one reply: `reply`, or `start` and then `write` up to the one with `last`; `fail` ends either."""

    async def reply(self, status: int, content_type: str, body: bytes) -> None:
        """Send one whole reply."""

    async def start(self, content_type: str) -> None:
        """Begin a stream with status 200."""

    async def write(self, body: bytes, *, last: bool) -> None:
        """Send a piece of the stream; waits while the receiver is too slow."""

    async def fail(self, error: VllamaError) -> None:
        """End a reply that will not be complete: with the error's status or, where a stream has begun, in it."""


class HttpSink:
    """An ASGI server's client."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._started = False

    async def reply(self, status: int, content_type: str, body: bytes) -> None:
        """Send one whole reply."""
        headers = [(b"content-type", content_type.encode()), (b"content-length", b"%d" % len(body))]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self.write(body, last=True)

    async def start(self, content_type: str) -> None:
        """Begin a stream with status 200."""
        self._started = True
        headers = [(b"content-type", content_type.encode())]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def write(self, body: bytes, *, last: bool) -> None:
        """Send a piece of the stream."""
        await self._send({"type": "http.response.body", "body": body, "more_body": not last})

    async def fail(self, error: VllamaError) -> None:
        """End a reply that will not be complete."""
        if self._started:
            await self.write(error_line(str(error)), last=True)
        else:
            await self.reply(status_of(error), JSON, error_body(str(error)))
