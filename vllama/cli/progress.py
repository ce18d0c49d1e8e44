"""Progress of long commands: bars on a terminal, plain lines elsewhere, and JSON with `--json`."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

import click

from vllama.cli.output import CLEAR_LINE, human_size

if TYPE_CHECKING:
    from vllama.store.progress import Progress

REDRAW_SECONDS = 0.1
_NARROWEST_BAR = 8


def bar(label: str, done: float, tail: str, width: int) -> str:
    """Return a line of `width` columns: the label, a bar that is filled to the share `done`, and the tail.

    "" where no room is left for a bar.
    """
    room = width - len(label) - len(tail) - 5
    if room < _NARROWEST_BAR:
        return ""
    filled = int(room * done)
    return f"{label} ▕{'█' * filled}{' ' * (room - filled)}▏{tail}"


def report(steps: Iterable[Progress], *, as_json: bool) -> None:
    """Show the steps as they arrive, on stderr or as JSON on stdout."""
    from vllama.store.progress import paced

    steps = paced(steps)
    if as_json:
        for step in steps:
            click.echo(json.dumps(step.to_record(), ensure_ascii=False))
    elif sys.stderr.isatty():
        with ProgressBars(sys.stderr) as bars:
            for step in steps:
                bars.update(step)
    else:
        plain = PlainProgress(sys.stderr)
        for step in steps:
            plain.update(step)


@dataclass(slots=True)
class Item:
    """One line of the display. The rate is measured from time `since` and byte count `base`."""

    status: str
    since: float
    base: int
    total: int | None = None
    completed: int = 0

    def line(self, now: float, width: int) -> str:
        """Return the line at time `now` (monotonic seconds), `width` columns wide."""
        if not self.total:
            return self.status[: width - 1]
        label = f"{self.status}: {self.completed * 100 // self.total:3d}%"
        amount = f"{human_size(self.completed):>6}/{human_size(self.total)}"
        if self.completed >= self.total:
            amount = f"{human_size(self.total):>6}"
        elif (seconds := now - self.since) > 0 and self.completed > self.base:
            amount += f"  {human_size(int((self.completed - self.base) / seconds)):>6}/s"
        return (
            bar(label, self.completed / self.total, f" {amount:<26}", width).rstrip()
            or f"{label} {amount}"[: width - 1]
        )


class ProgressBars:
    """Redraws one line per step or file in place, at most ten times a second."""

    def __init__(
        self,
        stream: TextIO,
        clock: Callable[[], float] = time.monotonic,
        size: Callable[[], os.terminal_size] = shutil.get_terminal_size,
    ) -> None:
        self._stream = stream
        self._clock = clock
        self._size = size
        self._items: dict[str, Item] = {}
        self._drawn = 0
        self._drawn_at = float("-inf")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._draw()

    def update(self, step: Progress) -> None:
        """Update the display with a step."""
        now = self._clock()
        key = step.digest or step.status
        is_new = key not in self._items
        if is_new:
            self._items[key] = Item(step.status, since=now, base=step.completed)
        item = self._items[key]
        item.total, item.completed = step.total or item.total, step.completed
        if is_new or now - self._drawn_at >= REDRAW_SECONDS:
            self._draw()

    def _draw(self) -> None:
        self._drawn_at = self._clock()
        columns, rows = self._size()
        items = list(self._items.values())
        first = max(0, len(items) - rows + 1)  # the cursor cannot reach lines that have scrolled away
        up = f"\x1b[{self._drawn - first}A" if self._drawn > first else ""
        lines = (f"\r{item.line(self._drawn_at, columns)}\x1b[K\n" for item in items[first:])
        self._stream.write(up + "".join(lines))
        self._stream.flush()
        self._drawn = len(items)


class PlainProgress:
    """Writes one line when a step or file begins, for logs."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._seen: set[str] = set()

    def update(self, step: Progress) -> None:
        """Write a line for the step, unless it has one already."""
        key = step.digest or step.status
        if key in self._seen:
            return
        self._seen.add(key)
        size = f" ({human_size(step.total)})" if step.total else ""
        self._stream.write(f"{step.status}{size}\n")
        self._stream.flush()


class ProgressLine:
    """Shows the current step, the share done and the remaining time: a bar on a terminal, plain lines elsewhere."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._step = ""
        self._started: float | None = None
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
        """Show the current step and the share of all work that is done, 0 to 1."""
        now = self._clock()
        if done > 0 and self._started is None:
            self._started = now
        is_new = what != self._step
        self._step = what
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
        if self._started is not None and 0 < done < 1 and now > self._started:
            left = (now - self._started) * (1 - done) / done
            end += f"  {int(left) // 60}:{int(left) % 60:02d} left"
        return bar(what, done, end, width) or f"{what}{end}"[: width - 1]
