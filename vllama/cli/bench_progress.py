"""The progress of a bench: a bar with the time that is left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self, TextIO

from vllama.cli.output import CLEAR_LINE

REDRAW_SECONDS = 0.1


class BenchProgress:
    """Hears what is measured and how much is done, 0 to 1."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._said = ""
        self._begun: float | None = None
        self._drawn_at = float("-inf")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._stream.isatty():
            self._stream.write(CLEAR_LINE)
            self._stream.flush()

    def __call__(self, what: str, done: float) -> None:
        """Show it."""
        now = self._clock()
        if done > 0 and self._begun is None:
            self._begun = now
        is_new = what != self._said
        self._said = what
        if not self._stream.isatty():
            if is_new:
                self._stream.write(f"{what}\n")
                self._stream.flush()
        elif is_new or now - self._drawn_at >= REDRAW_SECONDS:
            self._drawn_at = now
            self._stream.write(CLEAR_LINE + self.line(what, done, now, shutil.get_terminal_size().columns))
            self._stream.flush()

    def line(self, what: str, done: float, now: float, width: int) -> str:
        """Return the bar as it looks at `now` (s), `width` columns wide."""
        end = f" {done:4.0%}"
        if self._begun is not None and 0 < done < 1 and now > self._begun:
            left = (now - self._begun) * (1 - done) / done
            end += f"  {int(left) // 60}:{int(left) % 60:02d} left"
        room = width - len(what) - len(end) - 5
        if room < 8:
            return f"{what}{end}"[: width - 1]
        filled = int(room * done)
        return f"{what} ▕{'█' * filled}{' ' * (room - filled)}▏{end}"
