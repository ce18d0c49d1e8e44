"""JSON as Go's decoder reads it, because clients were written against its habits (contract §1.1).

Unknown fields are ignored, names match whatever their case, `null` leaves a field at its zero value,
bytes after the first value are ignored, and a wrong type is an error that names field and type.
"""

from __future__ import annotations

import binascii
import json
from base64 import b64decode
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import orjson

from vllama.errors import RequestError

T = TypeVar("T")

_DECODER = json.JSONDecoder()

# json.JSONDecodeError.msg → the state in which Go's scanner would be
_SCANNER_STATES = {
    "Expecting value": "looking for beginning of value",
    "Expecting property name enclosed in double quotes": "looking for beginning of object key string",
    "Illegal trailing comma before end of object": "looking for beginning of object key string",
    "Illegal trailing comma before end of array": "looking for beginning of value",
    "Expecting ':' delimiter": "after object key",
    "Invalid control character at": "in string literal",
    "Invalid \\escape": "in string escape code",
    "Invalid \\uXXXX escape": "in \\u hexadecimal character escape",
}


def decode(body: bytes) -> Any:
    """Return the first JSON value of the body. Raises RequestError with Go's text."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return _decode_first(body)


def _decode_first(body: bytes) -> Any:
    if not body.strip():
        raise RequestError("missing request body")
    try:
        text = body.decode().lstrip("\ufeff \t\r\n")
    except UnicodeDecodeError:
        text = body.decode(errors="replace").lstrip(" \t\r\n")  # as Go: bad bytes become U+FFFD
    try:
        value, _ = _DECODER.raw_decode(text)
    except json.JSONDecodeError as error:
        raise RequestError(_syntax_error(text, error)) from None
    except RecursionError:
        raise RequestError("exceeded max depth") from None
    return value


def _syntax_error(text: str, error: json.JSONDecodeError) -> str:
    position = error.pos
    if error.msg.startswith(("Unterminated string", "Illegal trailing comma")):
        position = len(text) if error.msg.startswith("Unterminated") else _next_token(text, position + 1)
    if position >= len(text):
        return "unexpected EOF"
    state = _SCANNER_STATES.get(error.msg.removesuffix(": "))
    if state is None:  # "Expecting ',' delimiter"
        state = "after object key:value pair" if _inside_object(text[:position]) else "after array element"
    return f"invalid character {_go_char(text[position])} {state}"


def _next_token(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _inside_object(text: str) -> bool:
    """Whether the innermost open bracket is a brace."""
    open_brackets: list[str] = []
    in_string = escaped = False
    for char in text:
        if in_string:
            escaped = char == "\\" and not escaped
            in_string = char != '"' or escaped
        elif char == '"':
            in_string = True
        elif char in "{[":
            open_brackets.append(char)
        elif char in "}]" and open_brackets:
            open_brackets.pop()
    return bool(open_brackets) and open_brackets[-1] == "{"


def _go_char(char: str) -> str:
    if char == "'":
        return r"'\''"
    if char == '"':
        return "'\"'"
    return repr(char)


def kind(value: object) -> str:
    """The JSON type's name in Go's error messages."""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "object"


class Fields:
    """The fields of one JSON object, read by name with Go's types.

    `struct` and `prefix` only serve the messages: `GenerateRequest`, `messages.`.
    """

    __slots__ = ("_prefix", "_struct", "_values")

    def __init__(self, value: object, struct: str, known: Mapping[str, str], *, prefix: str = "", go: str = "") -> None:
        """Take the object apart; `known` maps lower-case field names to their spelling.

        Raises RequestError where the value is no object.
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
        """The error for a value of the wrong JSON type."""
        shown = f"number {value}" if isinstance(value, float) and go == "int" else kind(value)
        return RequestError(
            f"json: cannot unmarshal {shown} into Go struct field {self._struct}.{self._prefix}{name} of type {go}"
        )

    def raw(self, name: str) -> Any:
        """The value as it is; None where absent."""
        return self._values.get(name)

    def string(self, name: str) -> str:
        """A string; "" where absent."""
        value = self._values.get(name)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise self.mismatch(name, value, "string")
        return value

    def boolean(self, name: str) -> bool | None:
        """A bool; None where absent."""
        value = self._values.get(name)
        if value is not None and not isinstance(value, bool):
            raise self.mismatch(name, value, "bool")
        return value

    def integer(self, name: str) -> int:
        """An int; 0 where absent."""
        value = self._values.get(name)
        if value is None:
            return 0
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.mismatch(name, value, "int")
        return value

    def mapping(self, name: str) -> dict[str, Any]:
        """An object; {} where absent."""
        value = self._values.get(name)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self.mismatch(name, value, "map[string]interface {}")
        return value

    def items(self, name: str, go: str, read: Callable[[Any], T]) -> tuple[T, ...]:
        """A list whose items `read` converts; () where absent."""
        value = self._values.get(name)
        if value is None:
            return ()
        if not isinstance(value, list):
            raise self.mismatch(name, value, go)
        return tuple(read(item) for item in value)

    def integers(self, name: str) -> tuple[int, ...]:
        """A list of ints; () where absent."""

        def read(item: Any) -> int:
            if isinstance(item, bool) or not isinstance(item, int):
                raise self.mismatch(name, item, "int")
            return item

        return self.items(name, "[]int", read)

    def images(self, name: str) -> tuple[bytes, ...]:
        """A list of base64 texts, decoded; a `data:` prefix is accepted, which Ollama refuses (contract §10)."""

        def read(item: Any) -> bytes:
            if not isinstance(item, str):
                raise self.mismatch(name, item, "api.ImageData")
            return decode_base64(item)

        return self.items(name, "[]api.ImageData", read)


def decode_base64(text: str) -> bytes:
    """Return the bytes of standard base64. Raises RequestError with Go's text."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return b64decode(text.replace("\n", "").replace("\r", ""), validate=True)
    except (binascii.Error, ValueError):
        raise RequestError(f"illegal base64 data at input byte {_first_bad_byte(text)}") from None


def _first_bad_byte(text: str) -> int:
    alphabet = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")
    for position, char in enumerate(text):
        if char not in alphabet:
            return position
    return len(text) - len(text) % 4


def known_fields(*names: str) -> dict[str, str]:
    """The `known` argument of Fields for these field names."""
    return {name.lower(): name for name in names}
