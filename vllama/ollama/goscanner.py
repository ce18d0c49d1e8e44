"""Locating JSON errors, with the messages of Go's decoder (`encoding/json`, scanner.go and stream.go).

Runs only on bodies that orjson refused, so it is written for clarity. Regular expressions skip long texts and lists of
numbers quickly, and the number of steps is limited, because the event loop is blocked meanwhile.
"""

from __future__ import annotations

import re

from vllama.durations import quote
from vllama.errors import RequestError

MOST_DEPTH = 1024
"""Maximum nesting depth, the same as orjson's; Go's is 10,000."""

MOST_STEPS = 20_000
"""Maximum number of members and items to scan, which takes about 40 ms; a list of plain items is one step."""

_SPACE = re.compile(rb"[ \t\r\n]*")
_DIGITS = re.compile(rb"[0-9]+")
_PLAIN_TEXT = re.compile(rb'(?:[^"\\\x00-\x1f]++|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*+')
_PLAIN_ITEMS = re.compile(
    rb"(?:(?:-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?+|true|false|null|" + rb'"[^"\\\x00-\x1f]*+")[ \t\r\n]*+,[ \t\r\n]*+)*+'
)
"""Plain list items, each with its comma."""

_CLOSING = {b"{": b"}", b"[": b"]"}
_LITERALS = {b"t": b"true", b"f": b"false", b"n": b"null"}
_HEXADECIMAL = re.compile(rb"[0-9a-fA-F]{0,3}")


class TooManyValues(Exception):
    """The error is beyond the part of the body that is scanned."""


def end_of_first_value(data: bytes) -> int:
    """Return where the first JSON value ends; like Go's decoder, ignore what follows.

    Raises RequestError with Go's message (`unexpected EOF`, or the unexpected character and the state), TooManyValues
    after more than MOST_STEPS steps.
    """
    open_brackets: list[bytes] = []
    at = _skip_space(data, 0)
    for _ in range(MOST_STEPS):  # a value begins here
        bracket = data[at : at + 1]
        if bracket in _CLOSING:
            open_brackets.append(bracket)
            if len(open_brackets) > MOST_DEPTH:
                raise _unexpected(data, at, "exceeded max depth")
            at = _skip_space(data, at + 1)
            if data[at : at + 1] != _CLOSING[bracket]:
                at = _to_value(data, at, bracket)
                continue
        else:
            at = _scalar(data, at)
        while open_brackets:  # a value has ended, or a closing bracket is here
            at = _skip_space(data, at)
            char, bracket = data[at : at + 1], open_brackets[-1]
            if char == b",":
                at = _to_value(data, _skip_space(data, at + 1), bracket)
                break
            if char != _CLOSING[bracket]:
                raise _unexpected(data, at, "after object key:value pair" if bracket == b"{" else "after array element")
            open_brackets.pop()
            at += 1
        else:
            return at
    raise TooManyValues


def _to_value(data: bytes, at: int, bracket: bytes) -> int:
    """Advance from the beginning of a member or item to the next value to scan."""
    return _after_key(data, at) if bracket == b"{" else _match_end(_PLAIN_ITEMS, data, at)


def _after_key(data: bytes, at: int) -> int:
    """Advance from a key to its value."""
    if data[at : at + 1] != b'"':
        raise _unexpected(data, at, "looking for beginning of object key string")
    at = _skip_space(data, _string(data, at))
    if data[at : at + 1] != b":":
        raise _unexpected(data, at, "after object key")
    return _skip_space(data, at + 1)


def _scalar(data: bytes, at: int) -> int:
    char = data[at : at + 1]
    if char == b'"':
        return _string(data, at)
    if char in _LITERALS:
        return _literal(data, at, _LITERALS[char])
    if char == b"-" or char.isdigit():
        return _number(data, at)
    raise _unexpected(data, at, "looking for beginning of value")


def _string(data: bytes, at: int) -> int:
    at = _match_end(_PLAIN_TEXT, data, at + 1)
    char = data[at : at + 1]
    if char == b'"':
        return at + 1
    if char != b"\\":
        raise _unexpected(data, at, "in string literal")
    if data[at + 1 : at + 2] != b"u":
        raise _unexpected(data, at + 1, "in string escape code")
    digits = _match_end(_HEXADECIMAL, data, at + 2)
    raise _unexpected(data, digits, "in \\u hexadecimal character escape")


def _literal(data: bytes, at: int, literal: bytes) -> int:
    for offset in range(1, len(literal)):
        if data[at + offset : at + offset + 1] != literal[offset : offset + 1]:
            state = f"in literal {literal.decode()} (expecting '{chr(literal[offset])}')"
            raise _unexpected(data, at + offset, state)
    return at + len(literal)


def _number(data: bytes, at: int) -> int:
    if data[at : at + 1] == b"-":
        at += 1
    at = at + 1 if data[at : at + 1] == b"0" else _digits(data, at, "in numeric literal")
    if data[at : at + 1] == b".":
        at = _digits(data, at + 1, "after decimal point in numeric literal")
    if data[at : at + 1] in {b"e", b"E"}:
        at += 2 if data[at + 1 : at + 2] in {b"+", b"-"} else 1
        at = _digits(data, at, "in exponent of numeric literal")
    return at


def _digits(data: bytes, at: int, state: str) -> int:
    end = _match_end(_DIGITS, data, at)
    if end == at:
        raise _unexpected(data, at, state)
    return end


def _skip_space(data: bytes, at: int) -> int:
    return _match_end(_SPACE, data, at)


def _match_end(pattern: re.Pattern[bytes], data: bytes, at: int) -> int:
    match = pattern.match(data, at)
    return match.end() if match else at


def _unexpected(data: bytes, at: int, state: str) -> RequestError:
    if at >= len(data):
        return RequestError("unexpected EOF")
    return RequestError(f"invalid character {_quote_byte(data[at])} {state}")


def _quote_byte(byte: int) -> str:
    """Return a byte as Go shows it: as the code point of the same number, even if it is part of a UTF-8 sequence."""
    if byte == ord("'"):
        return r"'\''"
    if byte == ord('"'):
        return "'\"'"
    return f"'{quote(chr(byte))[1:-1]}'"
