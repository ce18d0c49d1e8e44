"""Limits of HTTP connections, before any request is routed, and the count of a server's connections."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Protocol

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_WARNINGS = 10.0
_SHARE_TO_CLOSE = 8
"""When all connections are taken, this part of the waiting ones is closed at once: sorting them each time costs."""


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Limits of one server's connections; sizes in bytes, times in seconds, None for no limit.

    The defaults are those of a worker, whose client is the gateway. `head_size` and `headers` hold for the head of a
    request, and for the trailers after its body. `pipelined` is the number of requests that may follow one whose reply
    is not complete.
    """

    head_size: int = 16 << 20
    headers: int = 1000
    pipelined: int = 32
    connections: int | None = None
    head_seconds: float | None = None
    body_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error reply of the protocol itself."""

    status: int
    message: str


class Waiting(Protocol):
    """A connection, as seen by the count of all."""

    waits_since: float
    """Time since when it has had no complete request, by the clock of the event loop; infinite while it has one."""

    def close_waiting(self) -> None:
        """Close the connection, which has no request in progress."""


class Connections:
    """The limits of a server, and what happens when all of its connections are taken."""

    def __init__(self, limits: Callable[[], HttpLimits] = HttpLimits) -> None:
        """Take a function that returns the limits in force, which a reload may change."""
        self._limits = limits
        self._warned = -_SECONDS_BETWEEN_WARNINGS

    @property
    def limits(self) -> HttpLimits:
        """The limits in force."""
        return self._limits()

    def has_room(self, newcomer: Waiting, connections: Collection[Waiting]) -> bool:
        """Return whether a connection that is already among these may stay.

        Those that have waited longest for a request are closed to make room; this is logged.
        """
        most = self.limits.connections
        if most is None or len(connections) <= most:
            return True
        waiting = [one for one in connections if one is not newcomer and one.waits_since != math.inf]
        waiting.sort(key=lambda one: one.waits_since)
        closed = waiting[: max(1, len(waiting) // _SHARE_TO_CLOSE)]
        for one in closed:
            one.close_waiting()
        self._warn(most, len(closed))
        return bool(closed)

    def _warn(self, number: int, closed: int) -> None:
        now = time.monotonic()
        if now - self._warned < _SECONDS_BETWEEN_WARNINGS:
            return
        self._warned = now
        what = f"closed {closed} that had no request" if closed else "refused a client"
        log.warning(
            "all %d connections are in use; %s. Raise VLLAMA_MAX_CONNECTIONS or the limit of open files (ulimit -n)",
            number,
            what,
        )
