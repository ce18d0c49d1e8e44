"""Output of the commands: tables, sizes and times in Ollama's wording, and a spinner."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import cycle
from threading import Event, Thread
from types import TracebackType
from typing import Any, Self, TextIO, TypeVar

import click

T = TypeVar("T")

GAP = "    "
CLEAR_LINE = "\r\x1b[K"

# Ollama represents an infinite keep-alive as 292 years and prints everything beyond 20 years as "Forever".
_FOREVER = timedelta(days=21 * 365)


def print_json(value: Any) -> None:
    """Print a value as indented JSON."""
    click.echo(json.dumps(value, ensure_ascii=False, indent=2))


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table with left-aligned columns, four spaces apart; an empty header is left out."""
    lines = [*([header] if header else []), *rows]
    columns = max(map(len, lines), default=0)
    widths = [max((len(line[i]) for line in lines if i < len(line)), default=0) for i in range(columns)]
    return "\n".join(
        GAP.join(cell.ljust(width) for cell, width in zip(line, widths, strict=False)).rstrip() for line in lines
    )


def human_size(size: int) -> str:
    """Return bytes in decimal units, as Ollama's lists show them: `98 MB`, `1.4 GB`, `512 B`."""
    for unit, scale in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if size >= scale:
            value = size / scale
            return f"{value:.1f} {unit}" if value < 10 and value != int(value) else f"{int(value)} {unit}"
    return f"{size} B"


def human_number(number: int) -> str:
    """Return a count of parameters as Ollama shows it: `134.52M`, `7.6B`."""
    for unit, scale, digits in (("B", 10**9, 1), ("M", 10**6, 2)):
        if number >= scale:
            value = number / scale
            return f"{value:.0f}{unit}" if value == int(value) else f"{value:.{digits}f}{unit}"
    return f"{number / 1000:.0f}K" if number >= 1000 else str(number)


def parse_time(text: object) -> datetime | None:
    """Parse an RFC 3339 time; None for Go's zero time and for invalid text."""
    try:
        moment = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    if moment.year == 1:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def human_time(moment: datetime | None, now: datetime) -> str:
    """Return a moment relative to now: `2 hours ago`, `4 minutes from now`, `Forever`, `Never`."""
    if moment is None:
        return "Never"
    distance = moment - now
    if distance >= _FOREVER:
        return "Forever"
    if distance > timedelta():
        return f"{human_duration(distance)} from now"
    return f"{human_duration(-distance)} ago"


def human_duration(duration: timedelta) -> str:
    """Return an approximate duration in words."""
    seconds = int(duration.total_seconds())
    if seconds < 60:
        return {0: "Less than a second", 1: "1 second"}.get(seconds, f"{seconds} seconds")
    minutes = seconds // 60
    if minutes < 60:
        return "About a minute" if minutes == 1 else f"{minutes} minutes"
    hours = int(duration / timedelta(hours=1) + 0.5)
    if hours == 1:
        return "About an hour"
    for unit, length, limit in (("hours", 1, 48), ("days", 24, 24 * 14), ("weeks", 168, 24 * 60)):
        if hours < limit:
            return f"{hours // length} {unit}"
    return f"{hours // 720} months" if hours < 24 * 365 * 2 else f"{seconds // 3600 // 8760} years"


def go_duration(ns: int) -> str:
    """Return nanoseconds as Go prints a duration: `117.199886ms`, `1m30.5s`."""
    if ns < 1000:
        return f"{ns}ns" if ns else "0s"
    for unit, digits in (("µs", 3), ("ms", 6)):
        if ns < 10 ** (digits + 3):
            return _decimal(ns, digits) + unit
    minutes, rest = divmod(ns, 60 * 10**9)
    hours, minutes = divmod(minutes, 60)
    seconds = _decimal(rest, 9) + "s"
    if hours:
        return f"{hours}h{minutes}m{seconds}"
    return f"{minutes}m{seconds}" if minutes else seconds


def _decimal(number: int, digits: int) -> str:
    whole, fraction = divmod(number, 10**digits)
    text = f"{fraction:0{digits}d}".rstrip("0")
    return f"{whole}.{text}" if text else str(whole)


def has_color(stream: TextIO) -> bool:
    """Return whether to use colour escape sequences on the stream."""
    return stream.isatty() and not os.environ.get("NO_COLOR")


class Spinner:
    """An activity indicator on a terminal; does nothing if the stream is not a terminal.

    `message` may change.
    """

    def __init__(self, message: str = "", stream: TextIO | None = None) -> None:
        self.message = message
        self._stream = stream or sys.stderr
        self._stopped = Event()
        self._thread: Thread | None = None

    def __enter__(self) -> Self:
        if self._stream.isatty():
            self._thread = Thread(target=self._spin, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def is_shown(self) -> bool:
        """Whether the spinner is on the screen now."""
        return self._thread is not None

    def stop(self) -> None:
        """Remove the spinner from the screen; further calls do nothing."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            self._stream.write(CLEAR_LINE)
            self._stream.flush()

    def until_first(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the items and stop the spinner when the first one arrives."""
        for item in items:
            self.stop()
            yield item

    def _spin(self) -> None:
        for frame in cycle("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"):
            self._stream.write(f"{CLEAR_LINE}{self.message}{' ' if self.message else ''}{frame} ")
            self._stream.flush()
            if self._stopped.wait(0.1):
                return
