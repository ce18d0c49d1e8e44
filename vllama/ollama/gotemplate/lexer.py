"""Go template text to tokens (the lexical rules of Go's text/template)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto

from vllama.durations import quote
from vllama.errors import TemplateError

KEYWORDS = frozenset({"block", "break", "continue", "define", "else", "end", "if", "range", "template", "with"})

_LEFT = "{{"
_SPACES = " \t\r\n"
_LEFT_TRIM = re.compile(r"-(?=[ \t\r\n])")
_COMMENT_CLOSE = re.compile(r"(?P<trim>[ \t\r\n]-)?\}\}")
_CLOSE = re.compile(r"(?P<trim>[ \t\r\n]+-)?\}\}")
_SPACE = re.compile(r"(?:[ \t\r\n](?!-\}\}))+")
_QUOTED = re.compile(r'"(?:[^"\\\n]|\\[^\n])*"')
_RAW_QUOTED = re.compile(r"`[^`]*`")
_CHARACTER = re.compile(r"'(?:[^'\\\n]|\\[^\n])*'")
_WORD = re.compile(r"\w*")
_NUMBER = re.compile(
    r"[+-]?(?:0[xX][0-9a-fA-F_]*(?:\.[0-9a-fA-F_]*)?(?:[pP][+-]?[0-9_]*)?|0[oO][0-7_]*|0[bB][01_]*"
    r"|[0-9_]*(?:\.[0-9_]*)?(?:[eE][+-]?[0-9_]*)?)i?"
)
_NUMBER_BEGINS = re.compile(r"\.?[0-9]")
_TERMINATORS = frozenset(_SPACES + ".,|:)(")


class Kind(Enum):
    """The kind of a token."""

    TEXT = auto()
    LEFT = auto()
    RIGHT = auto()
    SPACE = auto()
    ASSIGN = auto()
    DECLARE = auto()
    PIPE = auto()
    LEFT_PAREN = auto()
    RIGHT_PAREN = auto()
    CHAR = auto()
    KEYWORD = auto()
    IDENTIFIER = auto()
    BOOL = auto()
    NIL = auto()
    DOT = auto()
    FIELD = auto()
    VARIABLE = auto()
    NUMBER = auto()
    CHARACTER = auto()
    STRING = auto()
    RAW_STRING = auto()
    EOF = auto()


_SIGNS = {
    "=": Kind.ASSIGN,
    ":": Kind.DECLARE,
    "|": Kind.PIPE,
    "(": Kind.LEFT_PAREN,
    ")": Kind.RIGHT_PAREN,
}
_WORDS = {"true": Kind.BOOL, "false": Kind.BOOL, "nil": Kind.NIL}


@dataclass(frozen=True, slots=True)
class Token:
    """A token of the template. `line` counts from 1; a FIELD's text begins with its dot, a VARIABLE's with `$`."""

    kind: Kind
    text: str
    line: int

    def __str__(self) -> str:
        """Return the token as Go writes it in messages."""
        if self.kind is Kind.EOF:
            return "EOF"
        if self.kind in {Kind.DOT, Kind.KEYWORD, Kind.NIL}:
            return f"<{self.text}>"
        return f"{quote(self.text[:10])}..." if len(self.text) > 10 else quote(self.text)


class Lexer:
    """Lexer for one template; raises TemplateError where Go's lexer stops."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._line = 1
        self._action_line = 1
        self._parens = 0
        self._trims = False  # the previous action ended with a trim marker

    def tokens(self) -> Iterator[Token]:
        """Yield all tokens; the last is EOF."""
        while True:
            left = self._text.find(_LEFT, self._at)
            text = self._text[self._at : left if left >= 0 else None]
            kept = text.lstrip(_SPACES) if self._trims else text
            after = left + len(_LEFT)
            trim = _LEFT_TRIM.match(self._text, after) if left >= 0 else None
            if trim:
                kept = kept.rstrip(_SPACES)
            if kept:
                yield self._token(Kind.TEXT, kept)
            self._skip(len(text))
            if left < 0:
                break
            self._action_line = self._line
            inside = trim.end() + 1 if trim else after
            if self._text.startswith("/*", inside):
                self._comment(inside)
            else:
                yield self._token(Kind.LEFT, _LEFT)
                self._skip((trim.end() if trim else after) - left)
                yield from self._action()
        yield self._token(Kind.EOF, "")

    def _comment(self, start: int) -> None:
        end = self._text.find("*/", start)
        if end < 0:
            raise self.error("unclosed comment")
        close = _COMMENT_CLOSE.match(self._text, end + 2)
        if not close:
            raise self.error("comment ends before closing delimiter")
        self._skip(close.end() - self._at)
        self._trims = close["trim"] is not None

    def _action(self) -> Iterator[Token]:
        """Yield the tokens up to and including the closing braces."""
        self._parens = 0
        while True:
            close = _CLOSE.match(self._text, self._at)
            if close:
                if self._parens:
                    raise self.error("unclosed left paren")
                yield self._token(Kind.RIGHT, "}}")
                self._skip(close.end() - self._at)
                self._trims = close["trim"] is not None
                return
            token = self._inside()
            yield token
            self._skip(len(token.text))

    def _inside(self) -> Token:
        """Return the next token inside an action."""
        char = self._text[self._at : self._at + 1]
        if not char:
            raise self.error("unclosed action")
        if space := self._match(_SPACE):
            return self._token(Kind.SPACE, space)
        if char in _SIGNS:
            return self._sign(char)
        if char in "\"`'":
            return self._quoted(char)
        if char in "+-" or _NUMBER_BEGINS.match(self._text, self._at):
            return self._number()
        if char in ".$":
            return self._field_or_variable(char)
        if _is_word(char):
            return self._word()
        if "!" <= char <= "~":
            return self._token(Kind.CHAR, char)
        raise self.error(f"unrecognized character in action: {_code_point(char)}")

    def _sign(self, char: str) -> Token:
        if char == ":":
            if not self._text.startswith(":=", self._at):
                raise self.error("expected :=")
            return self._token(Kind.DECLARE, ":=")
        self._parens += (char == "(") - (char == ")")
        if self._parens < 0:
            raise self.error("unexpected right paren")
        return self._token(_SIGNS[char], char)

    def _quoted(self, quote: str) -> Token:
        pattern, kind, name = {
            '"': (_QUOTED, Kind.STRING, "quoted string"),
            "`": (_RAW_QUOTED, Kind.RAW_STRING, "raw quoted string"),
            "'": (_CHARACTER, Kind.CHARACTER, "character constant"),
        }[quote]
        text = self._match(pattern)
        if not text:
            raise self.error(f"unterminated {name}")
        return self._token(kind, text)

    def _number(self) -> Token:
        text = self._match(_NUMBER)
        following = self._text[self._at + len(text) : self._at + len(text) + 1]
        if _is_word(following):
            raise self.error(f'bad number syntax: "{text}{following}"')
        return self._token(Kind.NUMBER, text)

    def _field_or_variable(self, sign: str) -> Token:
        name = _WORD.match(self._text, self._at + 1)
        text = sign + (name[0] if name else "")
        self._check_end(len(text))
        if text == ".":
            return self._token(Kind.DOT, text)
        return self._token(Kind.FIELD if sign == "." else Kind.VARIABLE, text)

    def _word(self) -> Token:
        text = self._match(_WORD)
        self._check_end(len(text))
        if text in KEYWORDS:
            return self._token(Kind.KEYWORD, text)
        return self._token(_WORDS.get(text, Kind.IDENTIFIER), text)

    def _check_end(self, length: int) -> None:
        """Raise TemplateError unless a space, punctuation or the action's end follows."""
        at = self._at + length
        char = self._text[at : at + 1]
        if char and char not in _TERMINATORS and not self._text.startswith("}}", at):
            raise self.error(f"bad character {_code_point(char)}")

    def _match(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self._text, self._at)
        return match[0] if match else ""

    def _skip(self, length: int) -> None:
        self._line += self._text.count("\n", self._at, self._at + length)
        self._at += length

    def _token(self, kind: Kind, text: str) -> Token:
        return Token(kind, text, self._line)

    def error(self, message: str) -> TemplateError:
        """Return the error at this place, with the line where the action began if it differs."""
        started = ""
        if self._action_line != self._line:
            started = f"{'' if message.endswith(' action') else ' in action'} started at :{self._action_line}"
        return failed(self._line, message + started)


def failed(line: int, message: str) -> TemplateError:
    """Return an error with Go's wording; as the template has no name, the message begins with a colon."""
    return TemplateError(f"template: :{line}: {message}")


def _is_word(char: str) -> bool:
    return char == "_" or char.isalnum()


def _code_point(char: str) -> str:
    shown = f" '{char}'" if char.isprintable() and char != "\xa0" else ""
    return f"U+{ord(char):04X}{shown}"
