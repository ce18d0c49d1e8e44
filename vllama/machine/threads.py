"""Pools of threads, one for each kind of blocking work, so that no kind can use up the threads of another.

Unlike those of `concurrent.futures`, the threads do not keep the process from ending: a call that hangs, such as the
opening of a file on a lost network drive, must not make the server ignore SIGTERM.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_Call = tuple["Future[Any]", Callable[[], Any]]


class Threads(Executor):
    """At most `most` threads for blocking calls of one kind, started when needed; further calls wait for their turn.

    The threads live as long as the process, as the kernel expects of a thread that starts a process
    (vllama.machine.tied).
    """

    def __init__(self, kind: str, most: int) -> None:
        self._kind, self._most = kind, most
        self._calls: queue.SimpleQueue[_Call] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._started = 0
        self._busy = 0  # calls that wait or run

    def submit(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Call the function in one of the threads."""
        future: Future[T] = Future()
        with self._lock:
            self._busy += 1
            if self._started < min(self._busy, self._most):
                self._started += 1
                name = f"{self._kind}-{self._started}"
                threading.Thread(target=self._work, name=name, daemon=True).start()
        self._calls.put((future, lambda: function(*args, **kwargs)))
        return future

    async def run(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call the function in one of the threads and return its result."""
        return await asyncio.wrap_future(self.submit(function, *args, **kwargs))

    def _work(self) -> None:
        while True:
            _answer(*self._calls.get())
            with self._lock:
                self._busy -= 1


def _answer(future: Future[Any], call: Callable[[], Any]) -> None:
    """Call the function, unless it was cancelled meanwhile. No reference to either outlives the call."""
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = call()
    except BaseException as error:  # noqa: BLE001 - it belongs to the caller
        future.set_exception(error)
    else:
        future.set_result(result)
