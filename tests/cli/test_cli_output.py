from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllama.cli.output import (
    Spinner,
    go_duration,
    human_duration,
    human_number,
    human_size,
    human_time,
    parse_time,
    table,
)
from vllama.durations import parse_duration

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 KB"),
        (1500, "1.5 KB"),
        (98_363_007, "98 MB"),
        (190_948_608, "190 MB"),
        (1_400_000_000, "1.4 GB"),
        (16_381_516_776, "16 GB"),
        (2 * 10**12, "2 TB"),
    ],
)
def test_sizes_read_as_ollama_prints_them(size: int, text: str) -> None:
    assert human_size(size) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(999, "999"), (26_000, "26K"), (134_515_008, "134.52M"), (7_615_616_512, "7.6B"), (8 * 10**9, "8B")],
)
def test_parameter_counts_read_as_ollama_prints_them(number: int, text: str) -> None:
    assert human_number(number) == text


@pytest.mark.parametrize(
    ("duration", "text"),
    [
        (timedelta(milliseconds=400), "Less than a second"),
        (timedelta(seconds=1), "1 second"),
        (timedelta(seconds=59), "59 seconds"),
        (timedelta(seconds=60), "About a minute"),
        (timedelta(minutes=4, seconds=59), "4 minutes"),
        (timedelta(minutes=60), "About an hour"),
        (timedelta(hours=1, minutes=31), "2 hours"),
        (timedelta(days=2), "2 days"),
        (timedelta(days=14), "2 weeks"),
        (timedelta(days=70), "2 months"),
        (timedelta(days=800), "2 years"),
    ],
)
def test_durations_read_as_ollama_prints_them(duration: timedelta, text: str) -> None:
    assert human_duration(duration) == text


def test_a_time_is_told_as_seen_from_now() -> None:
    assert human_time(NOW - timedelta(hours=3), NOW) == "3 hours ago"
    assert human_time(NOW + timedelta(minutes=5), NOW) == "5 minutes from now"


def test_a_time_beyond_twenty_years_is_forever() -> None:
    assert human_time(datetime(2318, 9, 1, tzinfo=UTC), NOW) == "Forever"


@pytest.mark.parametrize("text", ["0001-01-01T00:00:00Z", None, "", "yesterday"])
def test_a_time_that_never_was_is_never(text: str | None) -> None:
    assert human_time(parse_time(text), NOW) == "Never"


def test_go_times_with_nanoseconds_and_offset_are_read() -> None:
    assert parse_time("2026-11-21T14:00:00.123456789+02:00") == NOW.replace(microsecond=123456)


def test_a_time_without_an_offset_is_utc() -> None:
    assert parse_time("2026-11-21T12:00:00") == NOW


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "0s"),
        (17, "17ns"),
        (1_500, "1.5µs"),
        (117_199_886, "117.199886ms"),
        (2_000_000_000, "2s"),
        (90_500_000_000, "1m30.5s"),
        (3_600_000_000_000, "1h0m0s"),
    ],
)
def test_durations_of_an_answer_read_as_go_prints_them(ns: int, text: str) -> None:
    assert go_duration(ns) == text


@settings(deadline=None)
@given(st.integers(min_value=0, max_value=2**63 - 1))
def test_a_printed_go_duration_parses_to_itself(ns: int) -> None:
    assert parse_duration(go_duration(ns)) == ns


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    assert table(("NAME", "ID"), [("a-long-name", "1"), ("b", "22")]) == (
        "NAME           ID\na-long-name    1\nb              22"
    )


def test_a_table_without_rows_is_its_header() -> None:
    assert table(("NAME", "ID"), []) == "NAME    ID"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_spinner_leaves_nothing_behind_on_a_terminal() -> None:
    terminal = Terminal()
    with Spinner("loading m", terminal) as spinner:
        spinner.stop()
        terminal.write("answer")
    assert terminal.getvalue().startswith("\r\x1b[Kloading m ⠋ ")
    assert terminal.getvalue().endswith("\r\x1b[Kanswer")


def test_a_spinner_is_silent_where_there_is_no_terminal() -> None:
    log = io.StringIO()
    with Spinner("loading m", log):
        pass
    assert log.getvalue() == ""


def test_a_spinner_goes_before_the_first_item_is_seen() -> None:
    terminal = Terminal()
    with Spinner("", terminal) as spinner:
        seen = [terminal.getvalue()[-4:] for _ in spinner.until_first([1, 2])]
    assert seen == ["\r\x1b[K", "\r\x1b[K"]
