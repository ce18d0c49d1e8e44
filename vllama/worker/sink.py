"""Where a reply goes: to an HTTP client of the worker, or into the channel to the gateway."""

from __future__ import annotations

from typing import Protocol

from vllama.asgi import Send


class Sink(Protocol):
    """Takes one reply: either `reply`, or `start` and then `write` up to the one with `last`."""

    async def reply(self, status: int, content_type: str, body: bytes) -> None:
        """Send one whole reply."""

    async def start(self, content_type: str) -> None:
        """Begin a stream with status 200."""

    async def write(self, body: bytes, *, last: bool) -> None:
        """Send a piece of the stream; waits while the receiver is too slow."""


class HttpSink:
    """An ASGI server's client."""

    def __init__(self, send: Send) -> None:
        self._send = send

    async def reply(self, status: int, content_type: str, body: bytes) -> None:
        """Send one whole reply."""
        headers = [(b"content-type", content_type.encode()), (b"content-length", b"%d" % len(body))]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self.write(body, last=True)

    async def start(self, content_type: str) -> None:
        """Begin a stream with status 200."""
        headers = [(b"content-type", content_type.encode())]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def write(self, body: bytes, *, last: bool) -> None:
        """Send a piece of the stream."""
        await self._send({"type": "http.response.body", "body": body, "more_body": not last})
