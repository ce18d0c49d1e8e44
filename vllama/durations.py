"""Durations: one type for all of them, Go's notation, and Ollama's keep_alive values (contract §2.2)."""

from __future__ import annotations

import re
from math import isfinite
from typing import Final, NewType, overload

from vllama.errors import RequestError

Nanoseconds = NewType("Nanoseconds", int)
"""A duration, as Ollama's API has it. Seconds exist only where a library takes or gives them; see `to_seconds`."""

NS_PER_SECOND = 1_000_000_000

ZERO: Final = Nanoseconds(0)

FOREVER: Final = Nanoseconds(-1)
"""Value of a keep-alive that never ends."""

# Go's time.Duration is an int64 of nanoseconds: -_LIMIT ≤ ns < _LIMIT.
_LIMIT = 2**63


def from_seconds(seconds: float) -> Nanoseconds:
    """Return finite seconds as nanoseconds, rounded towards 0; at most Go's longest duration."""
    return Nanoseconds(int(min(seconds * NS_PER_SECOND, _LIMIT - 1)))


@overload
def to_seconds(duration: Nanoseconds) -> float: ...
@overload
def to_seconds(duration: None) -> None: ...
def to_seconds(duration: Nanoseconds | None) -> float | None:
    """Return nanoseconds as seconds, which asyncio and its clock take; None (no limit) stays None."""
    return None if duration is None else duration / NS_PER_SECOND


_UNIT_NS = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,  # U+00B5 micro sign
    "μs": 1_000,  # U+03BC Greek mu
    "ms": 1_000_000,
    "s": NS_PER_SECOND,
    "m": 60 * NS_PER_SECOND,
    "h": 3600 * NS_PER_SECOND,
}
_NUMBER = re.compile(r"([0-9]*)(?:\.([0-9]*))?")
_UNIT = re.compile(r"[^0-9.]+")
_BARE_SECONDS = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?")


def parse_duration(text: str) -> Nanoseconds:
    """Return the nanoseconds of a Go duration such as `"1h30m"`, `"-1.5s"` or `"0"`.

    Raises RequestError with the message of Go's `time.ParseDuration`.
    """
    invalid = RequestError(f"time: invalid duration {_time_quote(text)}")
    sign, rest = 1, text
    if rest[:1] in {"+", "-"}:
        sign, rest = (-1 if rest[0] == "-" else 1), rest[1:]
    if rest == "0":
        return ZERO
    if not rest:
        raise invalid
    total = 0
    while rest:
        number = _NUMBER.match(rest)
        if number is None or number[0] in {"", "."}:
            raise invalid
        digits = number[1].lstrip("0") or "0"
        if len(digits) > len(str(_LIMIT)) or int(digits) > _LIMIT:
            raise invalid
        rest = rest[number.end() :]
        unit = _UNIT.match(rest)
        if unit is None:
            raise RequestError(f"time: missing unit in duration {_time_quote(text)}")
        rest = rest[unit.end() :]
        scale = _UNIT_NS.get(unit[0])
        if scale is None:
            raise RequestError(f"time: unknown unit {_time_quote(unit[0])} in duration {_time_quote(text)}")
        total += int(digits) * scale + _fraction_ns(number[2] or "", scale)
        if total > _LIMIT:
            raise invalid
    if total == _LIMIT and sign > 0:
        raise invalid
    return Nanoseconds(sign * total)


def _fraction_ns(digits: str, scale: int) -> int:
    """Return the nanoseconds of the digits after the point, in floating point as Go does: 0.333…h is 20 minutes."""
    value, power = 0, 1.0
    for digit in digits:
        longer = value * 10 + int(digit)
        if value > (_LIMIT - 1) // 10 or longer > _LIMIT:
            break
        value, power = longer, power * 10
    return int(value * (scale / power))


def parse_keep_alive(value: object) -> Nanoseconds | None:
    """Return the keep-alive (0: unload when idle), FOREVER, or None if the client gave none.

    Numbers are seconds, negative values mean forever, strings are Go durations. A bare
    number in a string ("300", "-1") counts as seconds, which is what clients that send it mean;
    Ollama refuses it (contract §10).
    """
    if value is None:
        return None
    if isinstance(value, bool):
        raise RequestError("Unsupported type: 'bool'")
    if isinstance(value, int | float):
        return _keep_alive_of(value)
    if isinstance(value, str):
        if _BARE_SECONDS.fullmatch(value.strip()):
            return _keep_alive_of(float(value))
        ns = parse_duration(value)
        return FOREVER if ns < 0 else ns
    kind = "[]interface {}" if isinstance(value, list) else "map[string]interface {}"
    raise RequestError(f"Unsupported type: '{kind}'")


def _keep_alive_of(seconds: float) -> Nanoseconds:
    return FOREVER if seconds < 0 or not isfinite(seconds) else from_seconds(seconds)


def _time_quote(text: str) -> str:
    """Return the text as Go's package `time` quotes it: bytes outside printable ASCII as `\\xff`."""
    out = []
    for byte in text.encode(errors="surrogatepass"):
        char = chr(byte)
        out.append("\\" + char if char in {'"', "\\"} else char if 0x20 <= byte < 0x80 else f"\\x{byte:02x}")
    return f'"{"".join(out)}"'


def quote(text: str) -> str:
    """Return the text as a Go string literal, as Go's `%q` prints it in error messages."""
    out = ['"']
    for char in text:
        if char in {'"', "\\"}:
            out.append("\\" + char)
        elif char in _ESCAPES:
            out.append(_ESCAPES[char])
        elif char.isprintable():
            out.append(char)
        elif ord(char) < 0x80:
            out.append(f"\\x{ord(char):02x}")
        else:
            out.append(f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}")
    return "".join([*out, '"'])


_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\a": "\\a", "\b": "\\b", "\f": "\\f", "\v": "\\v"}
