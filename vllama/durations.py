"""Go durations and Ollama's keep_alive values (contract §2.2)."""

from __future__ import annotations

import re
from math import isfinite

from vllama.errors import RequestError

NS_PER_SECOND = 1_000_000_000

FOREVER = -1
"""A keep-alive that never ends, in the place of nanoseconds."""

# Go's time.Duration is an int64 of nanoseconds.
_MAX_NS = 2**63 - 1

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
_NUMBER = re.compile(r"(\d*)(?:\.(\d*))?")
_UNIT = re.compile(r"[^\d.]+")


def parse_duration(text: str) -> int:
    """Return the nanoseconds of a Go duration such as `"1h30m"`, `"-1.5s"` or `"0"`.

    Raises RequestError with the message of Go's `time.ParseDuration`.
    """
    invalid = RequestError(f"time: invalid duration {quote(text)}")
    sign, rest = 1, text
    if rest[:1] in {"+", "-"}:
        sign, rest = (-1 if rest[0] == "-" else 1), rest[1:]
    if rest == "0":
        return 0
    if not rest:
        raise invalid
    total = 0
    while rest:
        number = _NUMBER.match(rest)
        if number is None or not number.group(0) or number.group(0) == ".":
            raise invalid
        rest = rest[number.end() :]
        unit = _UNIT.match(rest)
        if unit is None:
            raise RequestError(f"time: missing unit in duration {quote(text)}")
        rest = rest[unit.end() :]
        scale = _UNIT_NS.get(unit.group(0))
        if scale is None:
            raise RequestError(f"time: unknown unit {quote(unit.group(0))} in duration {quote(text)}")
        whole, fraction = number.group(1) or "0", number.group(2) or ""
        total += int(whole) * scale + (int(fraction) * scale // 10 ** len(fraction) if fraction else 0)
        if total > _MAX_NS:
            raise invalid
    return sign * total


def parse_keep_alive(value: object) -> int | None:
    """Return nanoseconds (0 = unload when idle), FOREVER, or None where the client said nothing.

    Numbers are seconds, negative values mean for ever, strings are Go durations. A bare
    number in a string ("300", "-1") is accepted as seconds, which Ollama refuses: clients that
    send it mean just that (contract §10).
    """
    if value is None:
        return None
    if isinstance(value, bool):
        raise RequestError("Unsupported type: 'bool'")
    if isinstance(value, int | float):
        return _from_seconds(value)
    if isinstance(value, str):
        if re.fullmatch(r"[+-]?\d+(\.\d+)?", value.strip()):
            return _from_seconds(float(value))
        ns = parse_duration(value)
        return FOREVER if ns < 0 else ns
    kind = "[]interface {}" if isinstance(value, list) else "map[string]interface {}"
    raise RequestError(f"Unsupported type: '{kind}'")


def _from_seconds(seconds: float) -> int:
    if seconds < 0:
        return FOREVER
    if not isfinite(seconds):
        return FOREVER
    return min(int(seconds * NS_PER_SECOND), _MAX_NS)


def quote(text: str) -> str:
    """Return the text as a Go string literal, as Go's `%q` prints it in error messages."""
    out = ['"']
    for char in text:
        if char in {'"', "\\"}:
            out.append("\\" + char)
        elif char in _ESCAPES:
            out.append(_ESCAPES[char])
        elif ord(char) < 0x20 or ord(char) == 0x7F:
            out.append(f"\\x{ord(char):02x}")
        else:
            out.append(char)
    return "".join([*out, '"'])


_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\a": "\\a", "\b": "\\b", "\f": "\\f", "\v": "\\v"}
