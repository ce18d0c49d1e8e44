"""Go's durations and Ollama's keep-alive values (contract §2.2)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllama.durations import FOREVER, Nanoseconds, from_seconds, parse_duration, parse_keep_alive, quote, to_seconds
from vllama.errors import RequestError

SECOND = 1_000_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE


# From Go's own tests of time.ParseDuration (src/time/time_test.go).
@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("0", 0),
        ("5s", 5 * SECOND),
        ("1478s", 1478 * SECOND),
        ("-5s", -5 * SECOND),
        ("+5s", 5 * SECOND),
        ("-0", 0),
        ("+0", 0),
        ("5.0s", 5 * SECOND),
        ("5.6s", 5_600_000_000),
        ("5.s", 5 * SECOND),
        (".5s", SECOND // 2),
        ("1.004s", 1_004_000_000),
        ("100.00100s", 100_001_000_000),
        ("10ns", 10),
        ("11us", 11_000),
        ("12µs", 12_000),  # U+00B5
        ("12μs", 12_000),  # U+03BC
        ("13ms", 13_000_000),
        ("15m", 15 * MINUTE),
        ("16h", 16 * HOUR),
        ("3h30m", 3 * HOUR + 30 * MINUTE),
        ("10.5s4m", 4 * MINUTE + 10_500_000_000),
        ("-2m3.4s", -(2 * MINUTE + 3_400_000_000)),
        ("1h2m3s4ms5us6ns", HOUR + 2 * MINUTE + 3_004_005_006),
        ("39h9m14.425s", 39 * HOUR + 9 * MINUTE + 14_425_000_000),
        ("52763797000ns", 52_763_797_000),
        ("0.3333333333333333333h", 20 * MINUTE),
        ("9007199254740993ns", 2**53 + 1),
        ("9223372036854775807ns", 2**63 - 1),
        ("9223372036854775.807us", 2**63 - 1),
        ("9223372036s854ms775us807ns", 2**63 - 1),
        ("-9223372036854775808ns", -(2**63)),
        ("-9223372036854775.808us", -(2**63)),
        ("-2562047h47m16.854775808s", -(2**63)),
        ("0.100000000000000000000h", 6 * MINUTE),
        ("0.830103483285477580700h", 49 * MINUTE + 48 * SECOND + 372_539_827),
    ],
)
def test_a_duration_is_what_go_makes_of_it(text: str, ns: int) -> None:
    assert parse_duration(text) == ns


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", 'time: invalid duration ""'),
        ("3", 'time: missing unit in duration "3"'),
        ("-", 'time: invalid duration "-"'),
        ("s", 'time: invalid duration "s"'),
        (".", 'time: invalid duration "."'),
        ("-.", 'time: invalid duration "-."'),
        (".s", 'time: invalid duration ".s"'),
        ("+.s", 'time: invalid duration "+.s"'),
        ("1d", 'time: unknown unit "d" in duration "1d"'),
        ("1h 5m", 'time: unknown unit "h " in duration "1h 5m"'),
        ("1h5", 'time: missing unit in duration "1h5"'),
        ("--1s", 'time: invalid duration "--1s"'),
        ('a"b\\', r'time: invalid duration "a\"b\\"'),
        ("\ufffd", r'time: invalid duration "\xef\xbf\xbd"'),
        ("\n", r'time: invalid duration "\x0a"'),
        ("3m\u00e9", r'time: unknown unit "m\xc3\xa9" in duration "3m\xc3\xa9"'),
        ("٣s", r'time: invalid duration "\xd9\xa3s"'),  # a digit, but not one of Go's
        ("9223372036854775808ns", 'time: invalid duration "9223372036854775808ns"'),
        ("-9223372036854775809ns", 'time: invalid duration "-9223372036854775809ns"'),
        ("9223372036854776us", 'time: invalid duration "9223372036854776us"'),
        ("3000000h", 'time: invalid duration "3000000h"'),
        ("9223372036854775.808us", 'time: invalid duration "9223372036854775.808us"'),
        ("9223372036854ms775us808ns", 'time: invalid duration "9223372036854ms775us808ns"'),
        ("99999999999999999999x", 'time: invalid duration "99999999999999999999x"'),
    ],
)
def test_what_go_refuses_is_refused_in_its_words(text: str, message: str) -> None:
    with pytest.raises(RequestError) as refusal:
        parse_duration(text)
    assert str(refusal.value) == message


@dataclass(frozen=True)
class Term:
    """One term of Go's grammar: a decimal number with an optional fraction, and a unit."""

    whole: str
    fraction: str | None
    unit: str

    def __str__(self) -> str:
        return self.whole + ("" if self.fraction is None else f".{self.fraction}") + self.unit

    @property
    def exact_ns(self) -> Fraction:
        # "valid time units are ns, us (or µs), ms, s, m, h", from the documentation of time.ParseDuration
        powers = {"ns": -9, "us": -6, "µs": -6, "μs": -6, "ms": -3, "s": 0, "m": 0, "h": 0}
        seconds = {"m": 60, "h": 3600}.get(self.unit, 1) * Fraction(10) ** powers[self.unit]
        return Fraction(f"{self.whole or '0'}.{self.fraction or '0'}") * seconds * 10**9


_DIGITS = st.text("0123456789", min_size=1, max_size=9)
_TERMS = st.builds(
    Term,
    whole=_DIGITS,
    fraction=st.none() | st.just("") | st.text("0123456789", min_size=1, max_size=24),
    unit=st.sampled_from(["ns", "us", "µs", "μs", "ms", "s"]),
) | st.builds(
    Term,
    whole=st.just("") | st.text("0123456789", min_size=1, max_size=4),
    fraction=st.text("0123456789", min_size=1, max_size=24),
    unit=st.sampled_from(["ns", "ms", "s", "m", "h"]),
)


@settings(deadline=None)  # the machine may be busy
@given(sign=st.sampled_from(["", "+", "-"]), terms=st.lists(_TERMS, min_size=1, max_size=4))
def test_a_duration_is_the_sum_of_its_terms_rounded_to_nanoseconds(sign: str, terms: list[Term]) -> None:
    exact = sum((term.exact_ns for term in terms), Fraction(0)) * (-1 if sign == "-" else 1)
    fractions = sum(term.fraction not in {None, ""} for term in terms)
    ns = parse_duration(sign + "".join(map(str, terms)))
    assert abs(ns - exact) <= fractions  # whole numbers are exact, a fraction may lose up to 1 ns
    assert ns == exact or fractions


@settings(deadline=None)
@given(st.one_of(st.text(), st.text("0123456789.hmsnuµ+- ", max_size=30), st.integers().map(lambda n: f"{n**99}s")))
def test_any_text_is_a_duration_or_an_error_for_the_client(text: str) -> None:
    try:
        ns = parse_duration(text)
    except RequestError:
        return
    assert -(2**63) <= ns < 2**63


@pytest.mark.parametrize(
    ("sent", "ns"),
    [
        ("null", None),
        ("0", 0),
        ("300", 300 * SECOND),
        ("1.5", 1_500_000_000),
        ("-1", FOREVER),
        ("-0.5", FOREVER),
        ('"0"', 0),
        ('"0s"', 0),
        ('"0m"', 0),
        ('"5m"', 5 * MINUTE),
        ('"1h30m"', 90 * MINUTE),
        ('"500ms"', SECOND // 2),
        ('"5m0s"', 5 * MINUTE),
        ('"-1m"', FOREVER),
        ('"-1s"', FOREVER),
        ("1e300", 2**63 - 1),
        ("18446744073709551615", 2**63 - 1),
    ],
)
def test_every_form_of_keep_alive_has_its_meaning(sent: str, ns: int | None) -> None:
    assert parse_keep_alive(json.loads(sent)) == ns


@pytest.mark.parametrize(
    ("text", "ns"),
    [("300", 300 * SECOND), ("-1", FOREVER), ("1.5", 1_500_000_000), (" 60 ", MINUTE), ("+2", 2 * SECOND)],
)
def test_a_bare_number_in_a_string_means_seconds_which_ollama_refuses(text: str, ns: int) -> None:
    assert parse_keep_alive(text) == ns


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (True, "Unsupported type: 'bool'"),
        ([], "Unsupported type: '[]interface {}'"),
        ({}, "Unsupported type: 'map[string]interface {}'"),
        ("abc", 'time: invalid duration "abc"'),
        ("", 'time: invalid duration ""'),
        ("٣", r'time: invalid duration "\xd9\xa3"'),
    ],
)
def test_a_keep_alive_of_another_kind_is_refused_in_ollamas_words(value: object, message: str) -> None:
    with pytest.raises(RequestError) as refusal:
        parse_keep_alive(value)
    assert str(refusal.value) == message


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("smollm2:135m", '"smollm2:135m"'),
        ('say "hi" \\', r'"say \"hi\" \\"'),
        ("a\nb\tc\r\a\b\f\v", r'"a\nb\tc\r\a\b\f\v"'),
        ("\x00\x1f\x7f", r'"\x00\x1f\x7f"'),
        ("é€😀", '"é€😀"'),
        ("\u00a0\u200b\u2028", r'"\u00a0\u200b\u2028"'),
        ("\U000e0001", r'"\U000e0001"'),
    ],
)
def test_quoted_texts_in_messages_look_like_gos(text: str, quoted: str) -> None:
    assert quote(text) == quoted


@pytest.mark.parametrize(
    ("seconds", "duration"),
    [(0, 0), (1.5, 1_500_000_000), (1e-9, 1), (1e300, 2**63 - 1)],
)
def test_seconds_become_nanoseconds(seconds: float, duration: int) -> None:
    assert from_seconds(seconds) == duration


def test_nanoseconds_become_seconds_and_no_limit_stays_none() -> None:
    assert to_seconds(Nanoseconds(1_500_000_000)) == 1.5
    assert to_seconds(None) is None
