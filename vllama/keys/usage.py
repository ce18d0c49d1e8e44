"""The record of usage: requests, tokens and seconds by hour, key and model, in SQLite.

Numbers are added up in memory, and one thread writes them about once a second. A crash loses what was not written yet;
`close` writes everything.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from vllama.errors import UsageError

log = logging.getLogger(__name__)

HOUR = 3600
_DAY = 24 * HOUR
_PAUSE_SECONDS = 1.0
_BUSY_SECONDS = 5.0
"""How long to wait for another process that writes."""

GROUPS = ("key", "model", "day")
"""What usage can be grouped by."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS usage (
    hour INTEGER NOT NULL, key TEXT NOT NULL, model TEXT NOT NULL,
    requests INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL, cached_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL, seconds REAL NOT NULL,
    PRIMARY KEY (hour, key, model)
) WITHOUT ROWID
"""
_ADD = """
INSERT INTO usage VALUES (?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (hour, key, model) DO UPDATE SET
    requests = requests + excluded.requests, prompt_tokens = prompt_tokens + excluded.prompt_tokens,
    cached_tokens = cached_tokens + excluded.cached_tokens, output_tokens = output_tokens + excluded.output_tokens,
    seconds = seconds + excluded.seconds
"""
_TODAY = "SELECT key, SUM(prompt_tokens + output_tokens) FROM usage WHERE hour >= ? GROUP BY key"

Bucket = tuple[int, str, str]
Numbers = tuple[int, int, int, int, float]
"""Requests, prompt tokens, of these the cached ones, output tokens, seconds."""


class UsageRecord:
    """Writer of the record. `clock` returns Unix seconds."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        """Take the path of the database, which is created when there is something to write."""
        self._path = path
        self._clock = clock
        self._lock = threading.Lock()
        self._pending: dict[Bucket, Numbers] = {}
        self._has_work = threading.Event()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._writer: sqlite3.Connection | None = None
        self._day = -1
        self._today: dict[str, int] = {}

    def add(self, key: str, model: str, numbers: Numbers) -> None:
        """Add to the numbers of this hour."""
        now = int(self._clock())
        bucket = (now - now % HOUR, key, model)
        with self._lock:
            is_first = not self._pending
            old = self._pending.get(bucket)
            self._pending[bucket] = numbers if old is None else _sum(old, numbers)
        if now // _DAY == self._day:
            self._today[key] = self._today.get(key, 0) + numbers[1] + numbers[3]
        if is_first:
            self._has_work.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._write_on, name="usage", daemon=True)
            self._thread.start()

    def tokens_today(self, key: str) -> int:
        """Return the prompt and output tokens of a key since midnight (UTC)."""
        day = int(self._clock()) // _DAY
        if day != self._day:
            self._start_day(day)
        return self._today.get(key, 0)

    def seconds_until_tomorrow(self) -> int:
        """Return the seconds until the next midnight (UTC), at least 1."""
        return max(_DAY - int(self._clock()) % _DAY, 1)

    def close(self) -> None:
        """Write everything and stop the thread."""
        self._stopped.set()
        self._has_work.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _start_day(self, day: int) -> None:
        """Add up what is recorded of a day, in the file and not written yet."""
        totals: dict[str, int] = {}
        if self._path.exists():
            try:
                with closing(_connect(self._path)) as connection:
                    totals = dict(connection.execute(_TODAY, (day * _DAY,)))
            except sqlite3.Error as error:
                log.error("cannot read %s, so tokens of today are counted anew: %s", self._path, error)  # noqa: TRY400
        with self._lock:
            for (hour, key, _), numbers in self._pending.items():
                if hour // _DAY == day:
                    totals[key] = totals.get(key, 0) + numbers[1] + numbers[3]
        self._day, self._today = day, totals

    def _write_on(self) -> None:
        failed = ""
        while True:
            self._has_work.wait()
            is_last = self._stopped.wait(_PAUSE_SECONDS)  # more may come, which is written with it
            self._has_work.clear()
            try:
                self._write()
                failed = ""
            except (sqlite3.Error, OSError) as error:
                if str(error) != failed:
                    failed = str(error)
                    log.error("cannot record usage in %s: %s", self._path, error)  # noqa: TRY400 - for the user
                self._has_work.set()
            if is_last:
                self._disconnect()
                return

    def _disconnect(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _write(self) -> None:
        """Write what is pending; if that fails, it stays pending."""
        with self._lock:
            batch, self._pending = self._pending, {}
        try:
            if self._writer is None:
                _create(self._path)
                self._writer = _connect(self._path)
                self._writer.execute(_SCHEMA)
            with self._writer:
                self._writer.executemany(_ADD, [(*bucket, *numbers) for bucket, numbers in batch.items()])
        except BaseException:
            self._disconnect()
            with self._lock:
                for bucket, numbers in self._pending.items():
                    batch[bucket] = _sum(batch[bucket], numbers) if bucket in batch else numbers
                self._pending = batch
            raise


@dataclass(frozen=True, slots=True)
class Usage:
    """Usage of one group: the values that it is grouped by, and its sums."""

    group: tuple[str, ...]
    requests: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    seconds: float


def read_usage(path: Path, since: float, by: Sequence[str]) -> list[Usage]:
    """Return the usage from the hour of a time (Unix seconds) on, grouped by some of GROUPS; most tokens first.

    Raises UsageError if the database cannot be read.
    """
    if not path.exists():
        return []
    columns = [_COLUMNS[name] for name in by]
    grouped = f"GROUP BY {', '.join(columns)}" if columns else "HAVING COUNT(*) > 0"
    selected = "".join(f"{column}, " for column in columns)
    query = (
        f"SELECT {selected}SUM(requests), SUM(prompt_tokens), SUM(cached_tokens), SUM(output_tokens), SUM(seconds) "  # noqa: S608 - of _COLUMNS
        f"FROM usage WHERE hour >= ? {grouped} ORDER BY SUM(prompt_tokens + output_tokens) DESC, 1"
    )
    try:
        with closing(_connect(path)) as connection:
            rows: Iterable[tuple[object, ...]] = connection.execute(query, (int(since) // HOUR * HOUR,)).fetchall()
    except sqlite3.Error as error:
        raise UsageError(f"cannot read {path}: {error}") from error
    width = len(columns)
    return [Usage(tuple(map(str, row[:width])), *row[width:]) for row in rows]  # type: ignore[arg-type]


def _sum(one: Numbers, other: Numbers) -> Numbers:
    return one[0] + other[0], one[1] + other[1], one[2] + other[2], one[3] + other[3], one[4] + other[4]


_COLUMNS = {"key": "key", "model": "model", "day": "date(hour, 'unixepoch')"}


def _create(path: Path) -> None:
    """Create the file for its owner only."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=_BUSY_SECONDS)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    return connection
