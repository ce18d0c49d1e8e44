"""Limits for the processes that convert GGUF files, set once for each process that starts them."""

from __future__ import annotations

import os
import resource
import threading
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from vllama.durations import to_seconds
from vllama.settings import Settings
from vllama.store.progress import Progress

_VARIABLES = ("VLLAMA_CONVERTER_MEMORY_BYTES", "VLLAMA_CONVERTER_SECONDS")
_LOOK_AGAIN_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes of memory of a converter, its processor time in seconds without progress, and how many run at once.

    0 stands for no limit of memory and time.
    """

    memory: int = 4 << 30
    seconds: int = 600
    at_once: int = 2

    def to_environment(self) -> dict[str, str]:
        """Return the variables from which a converter takes its limits."""
        return dict(zip(_VARIABLES, (str(self.memory), str(self.seconds)), strict=True))


_limits = Limits()
_lock = threading.Lock()
_running = 0


def limits() -> Limits:
    """Return the limits of this process's converters."""
    return _limits


def set_limits(settings: Settings) -> None:
    """Use the limits in these settings for converters from now on."""
    global _limits  # noqa: PLW0603 - conversions start deep inside imports
    seconds = 0 if settings.converter_timeout is None else max(1, round(to_seconds(settings.converter_timeout)))
    _limits = Limits(settings.converter_memory, seconds, settings.max_converters)


def turn() -> Generator[Progress, None, AbstractContextManager[None]]:
    """Wait until one more converter may run, a step at a time, and return a context manager that counts it."""
    global _running  # noqa: PLW0603 - the machine is one
    while True:
        with _lock:
            if _running < _limits.at_once:
                _running += 1
                return _counted()
        yield Progress("waiting for other conversions", pause=_LOOK_AGAIN_SECONDS)


@contextmanager
def _counted() -> Iterator[None]:
    global _running  # noqa: PLW0603 - the machine is one
    try:
        yield
    finally:
        with _lock:
            _running -= 1


def limit_this_process() -> None:
    """Take on the limits of memory and time that the environment names. Files that are mapped do not count."""
    memory, seconds = (int(os.environ.get(name) or 0) for name in _VARIABLES)
    if memory:
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    if seconds:
        note_progress()


def note_progress() -> None:
    """Allow this process as much time again."""
    seconds = int(os.environ.get(_VARIABLES[1]) or 0)
    if seconds:
        used = resource.getrusage(resource.RUSAGE_SELF)
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        ends = int(used.ru_utime + used.ru_stime) + seconds
        resource.setrlimit(resource.RLIMIT_CPU, (ends if hard == resource.RLIM_INFINITY else min(ends, hard), hard))
