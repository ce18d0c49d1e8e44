"""Failures in a row of engines (failed loads and dead workers), and the pause before the next load."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vllama.errors import KeepsFailing

_FIRST_PAUSE = 5.0
_LONGEST_PAUSE = 300.0
_FORGET_AFTER = 3600.0


@dataclass(slots=True)
class _Failure:
    count: int
    cause: str
    at: float

    @property
    def pause(self) -> float:
        """The pause in seconds: none after the first failure, then doubled each time."""
        return min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** (self.count - 2)) if self.count > 1 else 0.0


class Failures:
    """Recent failures by engine; other files or flags are another engine, without failures.

    Times are seconds of one clock.
    """

    def __init__(self) -> None:
        self._failures: dict[str, _Failure] = {}

    def note(self, engine: str, cause: str, now: float) -> None:
        """Record a failed load or a dead worker."""
        self._failures = {key: old for key, old in self._failures.items() if now - old.at < _FORGET_AFTER}
        before = self._failures.get(engine)
        self._failures[engine] = _Failure(before.count + 1 if before else 1, cause, now)

    def forget(self, engine: str) -> None:
        """Forget the failures of an engine that has answered or was ready for a while; a load proves nothing."""
        self._failures.pop(engine, None)

    def check(self, engine: str, name: str, now: float) -> None:
        """Raise KeepsFailing if it is too early to load the engine again."""
        failure = self._failures.get(engine)
        if failure is not None and (left := failure.at + failure.pause - now) > 0:
            raise KeepsFailing(name, failure.count, math.ceil(left), failure.cause)
