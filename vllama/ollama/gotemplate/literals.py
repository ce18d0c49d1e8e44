"""Literals of Go: strings, characters and numbers."""

from __future__ import annotations

import re
from math import isfinite

_ESCAPE = re.compile(
    r"\\(?:(?P<simple>[abfnrtv\\\"'])|(?P<octal>[0-7]{3})|x(?P<byte>[0-9a-fA-F]{2})"
    r"|u(?P<short>[0-9a-fA-F]{4})|U(?P<long>[0-9a-fA-F]{8})|(?P<wrong>.?))",
    re.DOTALL,
)
_SIMPLE = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_OLD_OCTAL = re.compile(r"^([+-]?)0(?=[0-7_])")
_FLOAT = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


def unquote(text: str) -> str:
    """Return the value of `"…"`, `'…'` or `` `…` ``. Raises ValueError if an escape is invalid."""
    quote, inner = text[0], text[1:-1]
    if quote == "`":
        return inner.replace("\r", "")
    value, at = bytearray(), 0
    for escape in _ESCAPE.finditer(inner):
        value += inner[at : escape.start()].encode(errors="surrogatepass")
        value += _unescape(escape, quote)
        at = escape.end()
    value += inner[at:].encode(errors="surrogatepass")
    return value.decode(errors="replace")


def _unescape(escape: re.Match[str], quote: str) -> bytes:
    if simple := escape["simple"]:
        if simple in "\"'" and simple != quote:
            raise ValueError("invalid syntax")
        return _SIMPLE.get(simple, simple).encode()
    if escape["octal"] or escape["byte"]:
        byte = int(escape["octal"], 8) if escape["octal"] else int(escape["byte"], 16)
        if byte > 255:
            raise ValueError("invalid syntax")
        return bytes([byte])
    code = int(escape["short"] or escape["long"] or "D800", 16)
    if escape["wrong"] is not None or code > 0x10FFFF or 0xD800 <= code < 0xE000:
        raise ValueError("invalid syntax")
    return chr(code).encode()


def number(text: str) -> int | float:
    """Return the value of a number. Raises ValueError with Go's message; imaginary numbers are not supported."""
    try:
        value = int(_OLD_OCTAL.sub(r"\g<1>0o", text), 0)
    except ValueError:
        if _FLOAT.fullmatch(text) and isfinite(float(text)):
            return int(float(text)) if float(text).is_integer() and abs(float(text)) < 2**53 else float(text)
        raise ValueError("illegal number syntax") from None
    if not -(2**63) <= value < 2**64:
        raise ValueError("integer overflow")
    return value
