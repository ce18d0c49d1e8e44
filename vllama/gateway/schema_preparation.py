"""Preparation of JSON Schemas in a thread of their own, within a time limit: some take seconds of CPU time."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Callable
from typing import Any, TypeVar

from vllama.durations import Nanoseconds, to_seconds
from vllama.errors import Overloaded
from vllama.machine.threads import Threads
from vllama.ollama.formats import Unprepared, enforced, is_prepared

T = TypeVar("T")

_MOST_WAITING = 32
"""Maximum number of schemas that wait for their preparation."""


class SchemaPreparation:
    """The thread that prepares schemas of which no result is kept."""

    def __init__(self, limit: Nanoseconds | None) -> None:
        """Give each schema at most `limit` of time."""
        self.limit = limit
        self._thread = Threads("schemas", 1)
        self._waiting = 0

    async def settled(self, work: Callable[[], T]) -> T:
        """Return the result of work in which schemas are enforced, after they were prepared.

        Work that meets a new schema is done again after that. Raises the errors of the work and of `enforced`, and
        Overloaded. Cancelling gives a preparation up.
        """
        from vllama.schemas import is_kept  # libraries for JSON Schema: imported when a request may have one

        while True:
            token = is_prepared.set(is_kept)
            try:
                return work()
            except Unprepared as new:
                schema = new.schema
            finally:
                is_prepared.reset(token)
            await self._prepare(schema)

    async def _prepare(self, schema: Any) -> None:
        from vllama.schemas import until

        if self._waiting >= _MOST_WAITING:
            raise Overloaded
        given_up = _GivenUp(to_seconds(self.limit))

        def prepare() -> None:
            with until(given_up):
                enforced(schema)

        self._waiting += 1
        try:
            context = contextvars.Context()  # not that of the request, in which schemas have to be prepared
            await self._thread.run(context.run, prepare)
        except asyncio.CancelledError:
            given_up.is_over = True
            raise
        finally:
            self._waiting -= 1


class _GivenUp:
    """Says whether a preparation takes too long, or its client has left."""

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._began: float | None = None
        self.is_over = False

    def __call__(self) -> bool:
        """Look; the first look begins the time."""
        if self._began is None:
            self._began = time.monotonic()
        return self.is_over or (self._seconds is not None and time.monotonic() - self._began > self._seconds)
