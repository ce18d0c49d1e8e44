"""The record of usage, and the limits of keys."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllama.errors import RateLimited, UsageError
from vllama.keys.key import Key, new_key
from vllama.keys.limits import Limits
from vllama.keys.usage import Usage, UsageRecord, read_usage

NOON = 1_700_000_000 // 86_400 * 86_400 + 43_200
MIDNIGHT = NOON + 43_200


class Clock:
    def __init__(self, now: float = NOON) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "usage.sqlite3"


def test_all_that_was_added_is_written_at_the_end(path: Path) -> None:
    record = UsageRecord(path, Clock())
    for number in range(100):
        record.add(f"key{number % 3}", "m", (1, 10, 4, 2, 0.5))
    record.close()
    assert read_usage(path, NOON, ["key"]) == [
        Usage(("key0",), 34, 340, 136, 68, 17.0),
        Usage(("key1",), 33, 330, 132, 66, 16.5),
        Usage(("key2",), 33, 330, 132, 66, 16.5),
    ]
    assert path.stat().st_mode & 0o777 == 0o600


def test_two_runs_and_two_servers_add_up(path: Path) -> None:
    first, second = UsageRecord(path, Clock()), UsageRecord(path, Clock())
    first.add("a", "m", (1, 0, 0, 5, 0.0))
    second.add("a", "m", (1, 0, 0, 6, 0.0))
    first.close()
    second.close()
    assert read_usage(path, NOON, ["key", "model"]) == [Usage(("a", "m"), 2, 0, 0, 11, 0.0)]


def test_usage_is_grouped_by_day_and_begins_with_an_hour(path: Path) -> None:
    clock = Clock()
    record = UsageRecord(path, clock)
    for clock.now in (NOON - 3601, NOON + 1800, MIDNIGHT + 5):
        record.add("a", "m", (1, 0, 0, 0, 0.0))
    record.close()
    days = [usage.group for usage in read_usage(path, NOON + 3599, ["day"])]
    assert days == [("2023-11-14",), ("2023-11-15",)]
    assert [usage.requests for usage in read_usage(path, NOON + 3599, [])] == [2]


def test_a_database_that_is_missing_has_no_usage(path: Path) -> None:
    assert read_usage(path, 0, ["key"]) == []
    UsageRecord(path).close()
    assert not path.exists()


def test_a_file_that_is_no_database_is_an_error(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("no database" * 100)
    with pytest.raises(UsageError, match=r"cannot read .*usage\.sqlite3"):
        read_usage(path, 0, ["key"])


def test_what_cannot_be_written_is_written_later(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.mkdir(parents=True)  # no file can be there
    record = UsageRecord(path, Clock())
    record.add("a", "m", (0, 0, 0, 1, 0.0))
    with pytest.raises((sqlite3.Error, OSError)):
        record._write()
    path.rmdir()
    record.add("a", "m", (0, 0, 0, 2, 0.0))
    record.close()
    assert [usage.output_tokens for usage in read_usage(path, NOON, ["key"])] == [3]


def test_tokens_of_today_include_those_of_an_earlier_run(path: Path) -> None:
    clock = Clock(NOON - 86_400)
    record = UsageRecord(path, clock)
    record.add("a", "m", (0, 1000, 0, 0, 0.0))
    clock.now = NOON
    record.add("a", "m", (0, 3, 2, 4, 0.0))
    record.close()
    record = UsageRecord(path, clock)
    record.add("a", "m", (0, 0, 0, 10, 0.0))
    assert record.tokens_today("a") == 17
    assert record.tokens_today("b") == 0
    clock.now = MIDNIGHT
    assert record.tokens_today("a") == 0
    record.close()


def limited(**limits: int) -> Key:
    return new_key("a", **limits)[1]


def test_tokens_of_a_day_end_at_midnight(path: Path) -> None:
    clock = Clock(MIDNIGHT - 100)
    record = UsageRecord(path, clock)
    limits, key = Limits(record), limited(tokens_per_day=10)
    limits.take(key)
    record.add("a", "m", (0, 6, 0, 4, 0.0))
    with pytest.raises(RateLimited, match="10 tokens per day") as refused:
        limits.take(key)
    assert refused.value.retry_after == 100
    clock.now = MIDNIGHT
    limits.take(key)
    record.close()


def test_a_key_without_limits_is_never_refused(path: Path) -> None:
    limits = Limits(UsageRecord(path))
    for _ in range(1000):
        limits.take(limited())


@given(st.integers(1, 5), st.lists(st.integers(0, 30 * 10**9), max_size=60))
def test_no_minute_has_more_requests_than_allowed_and_a_retry_in_time_succeeds(most: int, pauses: list[int]) -> None:
    now = 0
    limits, key = Limits(UsageRecord(Path("/none")), lambda: now), limited(requests_per_minute=most)
    taken: list[int] = []
    for pause in pauses:
        now += pause
        before = sum(1 for moment in taken if moment > now - 60 * 10**9)
        if before >= most:
            with pytest.raises(RateLimited) as refused:
                limits.take(key)
            assert refused.value.retry_after in range(1, 61)
            now += (refused.value.retry_after or 0) * 10**9
        limits.take(key)
        taken.append(now)
