"""Limits and usage of keys, for the routes that need a worker. Requests without a key pass unchanged."""

from __future__ import annotations

import time

from vllama.gateway.refusal import V1Relay
from vllama.gateway.relay import Header
from vllama.gateway.routing import Handler, Request
from vllama.keys.limits import Limits
from vllama.keys.usage import UsageRecord
from vllama.protocol.token_counts import HEADER, MARK, TokenCounts
from vllama.settings import Settings


class Meter:
    """Counter of one request's tokens. The worker may tell them after the client has left."""

    __slots__ = ("_counts", "_has_ended", "_key", "_request", "_usage", "pieces")

    def __init__(self, usage: UsageRecord, request: Request, key: str) -> None:
        self._usage = usage
        self._request = request
        self._key = key
        self._counts: TokenCounts | None = None
        self._has_ended = False
        self.pieces = 0
        """Pieces of an event stream that were relayed: about one for each token."""

    @property
    def is_counted(self) -> bool:
        """Whether the worker has told the tokens."""
        return self._counts is not None

    def count(self, counts: TokenCounts) -> None:
        """Take the tokens that the worker tells, at most once."""
        self._counts = counts
        if self._has_ended:
            self._usage.add(self._key, self._request.subject, (0, *counts, 0.0))

    def end(self) -> None:
        """Record the request, with an estimate of its tokens if its client left an event stream before its end."""
        request = self._request
        self._has_ended = True
        if request.subject:  # else it was refused before its model was found
            counts = self._counts or (0, 0, self.pieces)
            seconds = (time.monotonic_ns() - request.received) / 1e9
            self._usage.add(self._key, request.subject, (1, *counts, seconds))


class Metering:
    """The limits and the record of usage."""

    def __init__(self, settings: Settings) -> None:
        self._usage = UsageRecord(settings.usage_file)
        self._limits = Limits(self._usage)

    def metered(self, handler: Handler) -> Handler:
        """Return a handler that counts what a key uses. Raises RateLimited if the key has reached a limit."""

        async def counted(request: Request) -> None:
            key = request.key
            if key is None:
                await handler(request)
                return
            self._limits.take(key)
            request.meter = meter = Meter(self._usage, request, key.name)
            try:
                await handler(request)
            finally:
                meter.end()

        return counted

    def close(self) -> None:
        """Write the record of usage."""
        self._usage.close()


class CountedV1Relay(V1Relay):
    """Relay for vLLM's own routes that keeps the worker's token counts from the client."""

    __slots__ = ("_step",)

    def head(self, status: int, headers: list[Header]) -> None:
        """Take the counts of a complete reply out of its headers."""
        for name, value in headers:
            if name == HEADER:
                self._count(value)
        super().head(status, [header for header in headers if header[0] != HEADER])
        self._step = int(self.content_type.startswith(b"text/event-stream"))

    def body(self, data: bytes, *, last: bool) -> None:
        """Pass on a piece of the body, but take the counts at the end of an event stream."""
        if data.startswith(MARK):
            self._count(data[len(MARK) :])
            data = b""
            if not last:
                return
        elif self.meter is not None:
            self.meter.pieces += self._step
        super().body(data, last=last)

    def _count(self, text: bytes) -> None:
        counts = TokenCounts.from_bytes(text)
        if counts is not None and self.meter is not None:
            self.meter.count(counts)
