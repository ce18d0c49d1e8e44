"""Work of the gateway itself that must end when the server stops: pulls, creations."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vllama.errors import ServerStopping


class Drain:
    """Registry of running work that ends it when the server stops."""

    def __init__(self) -> None:
        self._under_way: set[asyncio.Task[Any]] = set()
        self._is_over = False

    @contextmanager
    def may_end(self) -> Iterator[None]:
        """Enclose work that `end` may interrupt with ServerStopping."""
        task: asyncio.Task[Any] = asyncio.current_task()  # type: ignore[assignment]  # a request has its task
        if self._is_over:
            raise ServerStopping
        self._under_way.add(task)
        try:
            yield
        except asyncio.CancelledError:
            if self._is_over and task.uncancel() == 0:
                raise ServerStopping from None
            raise
        finally:
            self._under_way.discard(task)

    def end(self) -> None:
        """Interrupt all work and refuse new work."""
        self._is_over = True
        for task in self._under_way:
            task.cancel()
