"""The progress of a pull or a creation: bars on a terminal, plain lines elsewhere, JSON where it is asked for."""

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

from vllama.cli.output import human_size

if TYPE_CHECKING:
    from vllama.store.progress import Progress

REDRAW_SECONDS = 0.1


def report(steps: Iterable[Progress], *, as_json: bool) -> None:
    """Show the steps as they come: on stderr, or as JSON on stdout."""
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
    """One line of the display. `since` and `base` (bytes) are where the rate is measured from."""

    status: str
    since: float
    base: int
    total: int = 0
    completed: int = 0

    def line(self, now: float, width: int) -> str:
        """Return the line as it looks now (seconds of a monotonic clock), `width` columns wide."""
        if not self.total:
            return self.status[: width - 1]
        label = f"{self.status}: {self.completed * 100 // self.total:3d}%"
        amount = f"{human_size(self.completed):>6}/{human_size(self.total)}"
        if self.completed >= self.total:
            amount = f"{human_size(self.total):>6}"
        elif (seconds := now - self.since) > 0 and self.completed > self.base:
            amount += f"  {human_size(int((self.completed - self.base) / seconds)):>6}/s"
        room = width - len(label) - 5 - max(len(amount), 26)
        if room < 10:
            return f"{label} {amount}"[: width - 1]
        filled = room * self.completed // self.total
        return f"{label} ▕{'█' * filled}{' ' * (room - filled)}▏ {amount}"


class ProgressBars:
    """Redraws one line per step or file in place, ten times a second at most."""

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
        """Show a step."""
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
        first = max(0, len(items) - rows + 1)  # what has scrolled away is out of the cursor's reach
        up = f"\x1b[{self._drawn - first}A" if self._drawn > first else ""
        lines = (f"\r{item.line(self._drawn_at, columns)}\x1b[K\n" for item in items[first:])
        self._stream.write(up + "".join(lines))
        self._stream.flush()
        self._drawn = len(items)


class PlainProgress:
    """Writes one line when a step or file begins: for logs."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._seen: set[str] = set()

    def update(self, step: Progress) -> None:
        """Write the step, unless it only goes on."""
        key = step.digest or step.status
        if key in self._seen:
            return
        self._seen.add(key)
        size = f" ({human_size(step.total)})" if step.total else ""
        self._stream.write(f"{step.status}{size}\n")
        self._stream.flush()
