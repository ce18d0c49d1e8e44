"""Parser for Modelfiles that accepts what Ollama's accepts and refuses with its messages.

A command is a line with a word and a value, in any case and order. A value in one or three double quotes may span
several lines, up to a line that ends with the same quotes. `#` begins a comment only where a command could begin.
"""

from __future__ import annotations

import codecs
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from vllama.errors import RequestError
from vllama.ollama.creation import REFUSED, Changes, check_requires, whole
from vllama.ollama.options import TYPES

_COMMANDS = (
    "from", "license", "template", "system", "adapter", "draft", "renderer", "parser", "parameter", "message",
    "requires",
)  # fmt: skip
_ROLES = ("system", "user", "assistant")
_BAD_COMMAND = "command must be one of " + ", ".join(f'"{name}"' for name in _COMMANDS[:-1]) + ', or "requires"'
_BAD_ROLE = 'message role must be one of "system", "user", or "assistant"'

# Parameters of older versions, which Ollama and vllama drop with a warning.
_DEPRECATED = (
    "penalize_newline", "low_vram", "f16_kv", "logits_all", "vocab_only", "use_mlock", "mirostat", "mirostat_tau",
    "mirostat_eta",
)  # fmt: skip
_REFUSED = {"draft": "draft_files", "renderer": "renderer", "parser": "parser"}

_LARGEST_NUMBER = 1 << 63
_BETWEEN = re.compile(r"(?:[ \t\r\n]+|#[^\r\n]*)*")
_WORD = re.compile(r"([A-Za-z]+)[ \t]+")
_PARAMETER = re.compile(r"([A-Za-z0-9_]+)[ \t]+")
_LINE = re.compile(r"[^\r\n]*")
_LINE_END = re.compile(r"\r\n?|\n")


@dataclass(frozen=True, slots=True)
class Modelfile:
    """A parsed Modelfile. `base` is the value of FROM: a model name or a path.

    `projector` is the value of a second FROM, the path of the base's vision tower, and `adapter` the path of ADAPTER;
    "" if there is none. `warnings` name dropped parameters.
    """

    base: str
    changes: Changes
    projector: str = ""
    adapter: str = ""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Command:
    """A command: lower-case name, PARAMETER's name or MESSAGE's role, value, and first line."""

    name: str
    subject: str
    value: str
    line: int


@dataclass(slots=True)
class _Collected:
    values: dict[str, str] = field(default_factory=dict)
    licenses: list[str] = field(default_factory=list)
    messages: list[tuple[str, str]] = field(default_factory=list)
    parameters: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def decode(data: bytes) -> str:
    """Decode a file: UTF-8, or UTF-16 with a byte order mark. Raises RequestError."""
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise RequestError(f"the Modelfile is not {encoding.upper().removesuffix('-SIG')}: {error}") from None


def parse(text: str) -> Modelfile:
    """Parse a Modelfile. Raises RequestError, which names the line."""
    found = _Collected()
    for command in commands(text):
        try:
            _collect(command, found)
        except RequestError as error:
            raise _at(command.line, str(error)) from None
    if not found.values.get("from"):
        raise RequestError("no FROM line")
    return Modelfile(
        base=found.values["from"],
        changes=Changes(
            parameters=found.parameters,
            system=found.values.get("system", ""),
            template=found.values.get("template", ""),
            license="\n".join(found.licenses),
            messages=tuple(found.messages),
        ),
        projector=found.values.get("projector", ""),
        adapter=found.values.get("adapter", ""),
        warnings=tuple(found.warnings),
    )


def _collect(command: Command, found: _Collected) -> None:
    name, value = command.name, command.value
    if name in _REFUSED:
        raise RequestError(REFUSED[_REFUSED[name]])
    if name == "license":
        found.licenses.append(value)
    elif name == "message":
        found.messages.append((command.subject, value))
    elif name == "requires":
        check_requires(value)
    elif name == "from" and "projector" in found.values:
        raise RequestError("a third FROM is not supported; a model has one base, and one projector (mmproj)")
    elif name == "from" and "from" in found.values:
        found.values["projector"] = value
    elif name == "adapter" and "adapter" in found.values:
        raise RequestError("only one adapter is currently supported")  # Ollama's words
    elif name != "parameter":
        found.values[name] = value
    elif command.subject in _DEPRECATED:
        found.warnings.append(f"parameter {command.subject} is deprecated")
    else:
        _set_parameter(found.parameters, command.subject, value)


def _set_parameter(parameters: dict[str, Any], name: str, text: str) -> None:
    typed = _typed(name, text)
    if isinstance(typed, list):
        parameters.setdefault(name, []).extend(typed)
    else:
        parameters[name] = typed


def _typed(name: str, text: str) -> Any:
    kind = TYPES.get(name)
    if kind is None:
        raise RequestError(f"unknown parameter '{name}'")
    if kind == "array":
        return [text]
    if kind == "boolean":
        if text not in _BOOLEANS:
            raise RequestError(f"invalid bool value [{text}]")
        return _BOOLEANS[text]
    try:
        number = float(text) if kind == "float32" else int(text)
    except ValueError:
        number = math.nan
    if not abs(number) < _LARGEST_NUMBER:  # also NaN and infinity, which JSON cannot hold
        raise RequestError(f"invalid {'float' if kind == 'float32' else 'int'} value [{text}]")
    return whole(number) if isinstance(number, float) else number


_BOOLEANS = {
    **dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True),
    **dict.fromkeys(("0", "f", "F", "FALSE", "false", "False"), False),
}


def commands(text: str) -> Iterator[Command]:
    """Yield the commands of the text. Raises RequestError for invalid lines."""
    position, counted, line = _end(_BETWEEN, text, 0), 0, 1
    while position < len(text):
        line, counted = line + len(_LINE_END.findall(text, counted, position)), position
        word = _WORD.match(text, position)
        if not word or (name := word[1].lower()) not in _COMMANDS:
            raise _at(line, _BAD_COMMAND)
        position, subject = word.end(), ""
        if name in {"parameter", "message"}:
            second = (_PARAMETER if name == "parameter" else _WORD).match(text, position)
            if not second:
                raise _at(line, f"unexpected EOF: {text[position : _end(_LINE, text, position)]}")
            position, subject = second.end(), second[1]
            if name == "message" and subject not in _ROLES:
                raise _at(line, _BAD_ROLE)
        value, position = _value(text, position, line)
        yield Command(name, subject, value, line)
        position = _end(_BETWEEN, text, position)


def _value(text: str, start: int, line: int) -> tuple[str, int]:
    """Return the value that begins at `start`, and the end of its last line."""
    end = _end(_LINE, text, start)
    written = text[start:end].strip()
    if (value := unquote(written)) is not None:
        return value, end
    start = text.index(written, start)
    mark = _mark(written)
    while end < len(text):
        first = _end(_LINE_END, text, end)
        end = _end(_LINE, text, first)
        last = first + len(text[first:end].rstrip())
        if text.endswith(mark, start + len(mark), last):
            return text[start + len(mark) : last - len(mark)], end
    raise _at(line, "unexpected EOF: the quotes are not closed")


def unquote(text: str) -> str | None:
    """Return the text without its surrounding quotes; None if they are not closed."""
    mark = _mark(text)
    is_closed = text.endswith(mark, len(mark))
    return text[len(mark) : len(text) - len(mark)] if is_closed else None


def _mark(text: str) -> str:
    """Return the quotes with which a text begins: three, one or none."""
    return next((mark for mark in ('"""', '"') if text.startswith(mark)), "")


def quote_if_needed(text: str) -> str:
    """Quote as Ollama does in Modelfiles: if there are line breaks or outer spaces, tripled if there are quotes.

    Also quotes where Ollama forgets to and then cannot parse it: outer tabs, and text that begins with a quote.
    """
    if not {"\n", "\r"} & set(text) and text == text.strip() and not text.startswith('"'):
        return text
    return f'"""{text}"""' if '"' in text else f'"{text}"'


def _end(pattern: re.Pattern[str], text: str, start: int) -> int:
    match = pattern.match(text, start)
    return match.end() if match else start


def _at(line: int, message: str) -> RequestError:
    return RequestError(f"(line {line}): {message}")
