"""Child processes of a piece of blocking work, so that another thread can end the work at any moment.

A thread that waits for the output of a child cannot be stopped. Its child can: the output then ends, and the thread
finds out.
"""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from typing import Any, TypeVar

T = TypeVar("T")


class Interruption:
    """The running child processes of one piece of work. `is_asked` says that the work must end."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._children: set[subprocess.Popen[Any]] = set()
        self.is_asked = False

    def ask(self) -> None:
        """Kill the child processes of the work, also those that it starts later."""
        with self._lock:
            self.is_asked = True
            for child in self._children:
                child.kill()

    def add(self, child: subprocess.Popen[Any]) -> None:
        """Count this child process as part of the work."""
        with self._lock:
            self._children.add(child)
            if self.is_asked:
                child.kill()

    def remove(self, child: subprocess.Popen[Any]) -> None:
        """Forget a child process that has ended."""
        with self._lock:
            self._children.discard(child)

    def next_of(self, steps: Iterator[T]) -> T | None:
        """Return the next item, None at the end; child processes that this starts belong to the work."""
        context = copy_context()
        context.run(_CURRENT.set, self)
        return context.run(next, steps, None)


_CURRENT: ContextVar[Interruption | None] = ContextVar("interruption", default=None)


@contextmanager
def interruptible(child: subprocess.Popen[Any]) -> Iterator[None]:
    """Have an interruption of the current work kill this child process; without such work nothing changes."""
    work = _CURRENT.get()
    if work is None:
        yield
        return
    work.add(child)
    try:
        yield
    finally:
        work.remove(child)
