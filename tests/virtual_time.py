"""An event loop whose clock jumps: a day of keep-alive takes no time, and a wait that nothing can end fails at once."""

from __future__ import annotations

import asyncio
import selectors


class Deadlock(Exception):
    """Everything waits, and there is neither a timer nor a socket that could change it."""


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Starts at 0 s. When nothing is left to do now, it is at once as late as the next timer says."""

    def __init__(self) -> None:
        self._now = 0.0
        super().__init__(_JumpingSelector(self))
        self._clock_resolution = 1e-7  # what a float still tells apart after years

    def time(self) -> float:
        """Virtual seconds."""
        return self._now

    def jump(self, seconds: float) -> None:
        """Move the clock."""
        self._now += seconds


class _JumpingSelector(selectors.SelectSelector):
    def __init__(self, loop: VirtualTimeLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise Deadlock
            self._loop.jump(timeout)
        return ready


async def now() -> None:
    """Let all happen that can happen before the clock moves."""
    await asyncio.sleep(1e-6)


async def later(seconds: float) -> None:
    """Let so many seconds pass."""
    await asyncio.sleep(seconds)
