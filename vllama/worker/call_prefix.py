"""Decide with each character whether a text that is still coming can consist of calls as JSON only.

The text may be one object, several, a list of them, each in doubled braces (`{{"name": …}}`, as models write whose
template shows the format so), and in a fenced block or in the tags of another family. Nothing else may stand in it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum, auto

import regex  # type: ignore[import-untyped]

from vllama.worker.offered_tools import ARGUMENT_KEYS, NAME_KEYS, OTHER_KEYS

_MARKS = {
    "```": "```",
    "```json": "```",
    "<tool_call>": "</tool_call>",
    "<tools>": "</tools>",
    "<function_call>": "</function_call>",
}
"""What may stand before JSON, and what ends it then."""

_MOST_LEVELS = 60
"""Maximum nesting of a call, as of schemas (`vllama.schemas.places`)."""

_SCALAR = regex.compile(r"true|false|null|-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?")
_BLANKS = frozenset(" \t\r\n")


class _Role(Enum):
    """The content of a bracket."""

    LIST = auto()
    DOUBLED = auto()  # a call in another pair of braces
    CALL = auto()
    FUNCTION = auto()  # name and arguments in a call
    DATA = auto()


class _Next(Enum):
    """The part of JSON that may come next in a bracket."""

    FIRST = auto()  # an entry, or the end
    ENTRY = auto()
    COLON = auto()
    VALUE = auto()
    COMMA = auto()  # or the end


@dataclass(slots=True)
class _Bracket:
    role: _Role
    is_object: bool
    next: _Next = _Next.FIRST
    key: str = ""


class CallPrefix:
    """The text so far. Reads each character once."""

    def __init__(self, names: Collection[str]) -> None:
        """Take the names of the tools that may be called."""
        self._names = names
        self._brackets: list[_Bracket] = []
        self._options: Collection[str] | None = None  # of the string that is open, None for any
        self._in_string = self._is_escaped = False
        self._token = ""  # a mark, a scalar, or a string of which only some are possible
        self._closing = ""  # the mark that ends what is open
        self._piece: list[str] = []  # of the object that is open
        self.can_be_calls = True
        """Whether the text can still become calls."""
        self.objects: list[str] = []
        """The JSON texts of the objects that are complete."""

    @property
    def is_complete(self) -> bool:
        """Whether the text consists of objects that are all complete."""
        return self.can_be_calls and bool(self.objects) and not (self._brackets or self._token)

    def feed(self, text: str) -> bool:
        """Take the next characters; return `can_be_calls`."""
        for char in text:
            if not self.can_be_calls:
                break
            self.can_be_calls = self._take(char)
        return self.can_be_calls

    def _take(self, char: str) -> bool:
        if not self._brackets:
            return self._between(char)
        if self._brackets[-1].role not in {_Role.LIST, _Role.DOUBLED}:
            self._piece.append(char)
        if self._in_string:
            return self._in_a_string(char)
        if self._token:
            if char not in _BLANKS and char not in ",]}":
                self._token += char
                return _SCALAR.fullmatch(self._token, partial=True) is not None
            if _SCALAR.fullmatch(self._token) is None:
                return False
            self._token = ""
            self._brackets[-1].next = _Next.COMMA
        return char in _BLANKS or self._structure(char)

    def _between(self, char: str) -> bool:
        """Take a character outside of all brackets: of a mark, a separator, or the first bracket."""
        if char in _BLANKS or char in "[{":
            if self._token and (self._closing or self._token not in _MARKS):
                return False
            if self._token:
                self._closing, self._token = _MARKS[self._token], ""
            return char in _BLANKS or self._open(char)
        if char in ",;" and self.objects and not self._token:
            return True
        self._token += char
        if self._token == self._closing:
            self._closing = self._token = ""
            return bool(self.objects)
        possible = (self._closing,) if self._closing else _MARKS
        return any(mark.startswith(self._token) for mark in possible)

    def _structure(self, char: str) -> bool:
        """Take a character of JSON that is neither blank nor in a string or scalar."""
        inner = self._brackets[-1]
        if char in "]}":
            return self._close(char)
        if inner.next is _Next.COMMA:
            inner.next = _Next.ENTRY
            return char == "," and inner.role is not _Role.DOUBLED
        if inner.next is _Next.COLON:
            inner.next = _Next.VALUE
            return char == ":"
        if inner.role is _Role.CALL and inner.next is _Next.FIRST and char == "{":
            return self._open(char)
        if inner.is_object and inner.role is not _Role.DOUBLED and inner.next is not _Next.VALUE:
            return char == '"' and self._open_string(self._possible_keys(inner))
        return self._value(char, inner)

    def _value(self, char: str, inner: _Bracket) -> bool:
        """Take the first character of a value."""
        if inner.role in {_Role.LIST, _Role.DOUBLED}:
            return char == "{" and self._open(char)
        if inner.role is not _Role.DATA:
            return self._value_of_a_call(char, inner)
        if char == '"':
            return self._open_string(None)
        if char in "[{":
            return self._open(char)
        self._token = char
        return _SCALAR.fullmatch(char, partial=True) is not None

    def _value_of_a_call(self, char: str, inner: _Bracket) -> bool:
        if char == "{":
            is_function = inner.key == "function" and inner.role is _Role.CALL
            return (is_function or inner.key in ARGUMENT_KEYS) and self._open(char)
        options = self._names if inner.key in NAME_KEYS else ("function",) if inner.key == "type" else None
        return char == '"' and self._open_string(options)

    def _open(self, char: str) -> bool:
        outer = self._brackets[-1] if self._brackets else None
        if outer is None or outer.role in {_Role.LIST, _Role.DOUBLED}:
            role = _Role.LIST if char == "[" else _Role.CALL
        elif outer.role is _Role.CALL and outer.next is _Next.FIRST:  # a brace right after a brace
            outer.role, role = _Role.DOUBLED, _Role.CALL
        else:
            is_function = outer.role is _Role.CALL and outer.key == "function"
            role = _Role.FUNCTION if is_function else _Role.DATA
        if role is _Role.CALL:
            self._piece = [char]
        self._brackets.append(_Bracket(role, is_object=char == "{"))
        return len(self._brackets) <= _MOST_LEVELS

    def _close(self, char: str) -> bool:
        closed = self._brackets.pop()
        if char != ("}" if closed.is_object else "]"):
            return False
        is_empty = closed.next is _Next.FIRST and closed.role is _Role.DATA
        if not is_empty and closed.next is not _Next.COMMA:
            return False
        if closed.role is _Role.CALL:
            self.objects.append("".join(self._piece))
        if self._brackets:
            self._brackets[-1].next = _Next.COMMA
        return True

    @staticmethod
    def _possible_keys(inner: _Bracket) -> Collection[str] | None:
        if inner.role is _Role.DATA:
            return None
        return (*NAME_KEYS, *ARGUMENT_KEYS, *(OTHER_KEYS if inner.role is _Role.CALL else ()))

    def _open_string(self, options: Collection[str] | None) -> bool:
        self._in_string, self._options, self._token = True, options, ""
        return True

    def _in_a_string(self, char: str) -> bool:
        if self._is_escaped:
            self._is_escaped = False
            return True
        if char == "\\":
            self._is_escaped = True
            return self._options is None
        if char != '"':
            if self._options is None:
                return char >= " "
            self._token += char
            return any(option.startswith(self._token) for option in self._options)
        return self._close_string()

    def _close_string(self) -> bool:
        text, options = self._token, self._options
        self._in_string, self._token, self._options = False, "", None
        inner = self._brackets[-1]
        if inner.is_object and inner.next is not _Next.VALUE:
            inner.key, inner.next = text, _Next.COLON
        else:
            inner.next = _Next.COMMA
        return options is None or text in options
