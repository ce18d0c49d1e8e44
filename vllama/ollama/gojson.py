"""JSON as Go's decoder reads it, because clients rely on its behaviour (contract §1.1).

Unknown fields are ignored, names match whatever their case, `null` leaves a field at its zero value,
bytes after the first value are ignored, and a wrong type is an error that names field and type.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import orjson
import pybase64

from vllama.errors import RequestError
from vllama.ollama.goscanner import TooManyValues, end_of_first_value

T = TypeVar("T")

MOST_MENDED = 16 << 20
"""Maximum bytes of an invalid JSON body that is repaired; that blocks the event loop up to 30 ms per MiB."""

MOST_SCANNED = 1 << 20
"""Maximum bytes of a malformed body that is refused with Go's exact message; larger ones get a short one."""

_MOST_ESCAPES = 100_000
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_LINE_BREAKS = b"\r\n"

_NUMBER = re.compile(r"[-+.0-9eE]{1,40}")
# An escape: a surrogate pair, a lone surrogate (group 1), or any other.
_ESCAPE = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})|\\.", re.DOTALL
)


def decode(body: bytes) -> Any:
    """Return the first JSON value of the body. Raises RequestError with Go's text."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        if len(body) > MOST_MENDED:
            raise _in_short(error) from None
    return _decode_leniently(body)


def _decode_leniently(body: bytes) -> Any:
    """Decode what Go accepts and orjson refuses: bytes after the value, bad UTF-8, lone surrogates (both U+FFFD).

    A byte order mark, which tools on Windows often send, is skipped too.
    """
    body = body.removeprefix(codecs.BOM_UTF8).lstrip(b" \t\r\n")
    if not body:
        raise RequestError("missing request body")
    text = _mended(body)
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        if error.msg == "unexpected content after document":
            return orjson.loads(text[: error.pos])
        if len(body) > MOST_SCANNED:
            raise _in_short(error) from None
        try:
            text = _mended(body[: end_of_first_value(body)])
        except TooManyValues:
            raise _in_short(error) from None
    return _first_value(text)


def _mended(body: bytes) -> str:
    text = body.decode(errors="replace")
    if _SURROGATE.search(text) and text.count("\\") <= _MOST_ESCAPES:
        return _ESCAPE.sub(lambda escape: r"\ufffd" if escape[1] else escape[0], text)
    return text


def _first_value(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:  # now valid JSON, but a number may be too large
        number = _NUMBER.match(text, error.pos)
        if not number:
            raise _in_short(error) from None
        raise RequestError(f"json: cannot unmarshal number {number[0]} into Go value of type float64") from None


def _in_short(error: orjson.JSONDecodeError) -> RequestError:
    """Return a short error message for a body that is too large for Go's exact message."""
    if error.msg == "unexpected end of data":
        return RequestError("unexpected EOF")
    return RequestError(f"invalid JSON: {error.msg} (character {error.pos})")


def kind(value: object) -> str:
    """Return the name of a JSON value's type in Go's error messages."""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "object"


class Fields:
    """The fields of one JSON object, read by name with Go's types.

    `struct` and `prefix` are used in error messages only: `GenerateRequest`, `messages.`.
    """

    __slots__ = ("_prefix", "_struct", "_values")

    def __init__(self, value: object, struct: str, known: Mapping[str, str], *, prefix: str = "", go: str = "") -> None:
        """Read the object; `known` maps lower-case field names to their spelling.

        Raises RequestError if the value is not an object.
        """
        self._struct, self._prefix = struct, prefix
        self._values: dict[str, Any] = {}
        if value is None:
            return
        if not isinstance(value, dict):
            if prefix:
                message = f"field {struct}.{prefix[:-1]} of type {go}"
                raise RequestError(f"json: cannot unmarshal {kind(value)} into Go struct {message}")
            raise RequestError(f"json: cannot unmarshal {kind(value)} into Go value of type {go or 'api.' + struct}")
        for name, item in value.items():
            spelling = name if name in known else known.get(name.lower())
            if spelling is not None:
                self._values[spelling] = item

    def mismatch(self, name: str, value: object, go: str) -> RequestError:
        """Return the error for a value of the wrong JSON type."""
        shown = f"number {value}" if isinstance(value, float) and go == "int" else kind(value)
        return RequestError(
            f"json: cannot unmarshal {shown} into Go struct field {self._struct}.{self._prefix}{name} of type {go}"
        )

    def raw(self, name: str) -> Any:
        """Return the value unchecked; None if absent."""
        return self._values.get(name)

    def string(self, name: str) -> str:
        """Return a string; "" if absent."""
        value = self._values.get(name)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise self.mismatch(name, value, "string")
        return value

    def boolean(self, name: str) -> bool | None:
        """Return a bool; None if absent."""
        value = self._values.get(name)
        if value is not None and not isinstance(value, bool):
            raise self.mismatch(name, value, "bool")
        return value

    def integer(self, name: str) -> int:
        """Return an int; 0 if absent."""
        value = self._values.get(name)
        if value is None:
            return 0
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.mismatch(name, value, "int")
        return value

    def number(self, name: str, go: str = "float64") -> float | None:
        """Return a number; None if absent."""
        value = self._values.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.mismatch(name, value, go)
        return value

    def mapping(self, name: str) -> dict[str, Any]:
        """Return an object; {} if absent."""
        value = self._values.get(name)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self.mismatch(name, value, "map[string]interface {}")
        return value

    def items(self, name: str, go: str, read: Callable[[Any], T]) -> tuple[T, ...]:
        """Return a list whose items `read` converts; () if absent."""
        value = self._values.get(name)
        if value is None:
            return ()
        if not isinstance(value, list):
            raise self.mismatch(name, value, go)
        return tuple(read(item) for item in value)

    def integers(self, name: str) -> tuple[int, ...]:
        """Return a list of ints; () if absent."""

        def read(item: Any) -> int:
            if item is None:
                return 0
            if isinstance(item, bool) or not isinstance(item, int):
                raise self.mismatch(name, item, "int")
            return item

        return self.items(name, "[]int", read)

    def images(self, name: str) -> tuple[bytes, ...]:
        """Return a list of decoded base64 strings; `data:` prefixes are accepted, unlike in Ollama (contract §10)."""

        def read(item: Any) -> bytes:
            if item is None:
                return b""
            if not isinstance(item, str):
                raise self.mismatch(name, item, "api.ImageData")
            return decode_base64(item)

        return self.items(name, "[]api.ImageData", read)


def decode_base64(text: str) -> bytes:
    """Return the bytes of standard base64, bare or in a `data:` URI. Raises RequestError with Go's text."""
    if text[:5].lower() == "data:":
        head, _, payload = text.partition(",")
        if head.lower().endswith(";base64") and len(head) < len(text):
            text = payload
    bare = text.replace("\n", "").replace("\r", "")
    try:
        # A request may carry tens of megabytes: this takes 0.1 ms per megabyte, the standard library 2 ms.
        data = pybase64.b64decode(bare, validate=True)
    except ValueError:
        raise _corrupt_base64(text) from None
    if len(bare) % 4 or bare.endswith("==="):  # Python accepts superfluous padding
        raise _corrupt_base64(text)
    return data


def _corrupt_base64(text: str) -> RequestError:
    return RequestError(f"illegal base64 data at input byte {_first_bad_byte(text)}")


def _first_bad_byte(text: str) -> int:
    """Return the offset where Go's decoder fails (`encoding/base64: decodeQuantum`), counting line breaks.

    The text may have tens of megabytes, so each step is one of C.
    """
    data = text.encode("utf-8", "replace")  # the same offsets up to the first character that is not ASCII
    strange = data.translate(None, _BASE64 + _LINE_BREAKS)
    position = data.index(strange[:1]) if strange else len(data)
    in_group = (position - sum(data.count(b"%c" % line_break, 0, position) for line_break in _LINE_BREAKS)) % 4
    if not strange:
        return len(text) - in_group
    return position if strange[:1] != b"=" or in_group < 2 else _bad_padding(text, position, in_group)


def _bad_padding(text: str, position: int, in_group: int) -> int:
    """Return the offset where the padding at `position` is wrong: incomplete, or followed by more characters."""
    after = _skip_line_breaks(text, position + 1)
    if in_group == 3:
        return after
    if after == len(text):
        return after
    return after - 1 if text[after] != "=" else _skip_line_breaks(text, after + 1)


def _skip_line_breaks(text: str, position: int) -> int:
    return len(text) - len(text[position:].lstrip("\r\n"))


def known_fields(*names: str) -> dict[str, str]:
    """Return the `known` argument of Fields for these field names."""
    return {name.lower(): name for name in names}
