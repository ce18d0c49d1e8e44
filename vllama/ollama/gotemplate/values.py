"""The data of Ollama's templates, and the Jinja expressions for it.

Ollama hands its templates structs with Go's names; vLLM hands its templates dictionaries in OpenAI's shape. Types are
tracked through the template, so that each `.Name` becomes the right key and a nil in between causes no error.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Type:
    """`text`, `number`, `any`, `list` or `map` of something, or `record` of a name below."""

    kind: str
    of: Type | str | None = None


TEXT, NUMBER, ANY = Type("text"), Type("number"), Type("any")


def listed(of: Type) -> Type:
    """Return the type of a list of `of`."""
    return Type("list", of)


def mapped(of: Type) -> Type:
    """Return the type of a map from text to `of`."""
    return Type("map", of)


def record(name: str) -> Type:
    """Return the type of one of Ollama's structs."""
    return Type("record", name)


RECORDS: dict[str, dict[str, tuple[str, Type]]] = {
    "root": {
        "System": ("System", TEXT),
        "Prompt": ("Prompt", TEXT),
        "Response": ("Response", TEXT),
        "Suffix": ("Suffix", TEXT),
        "Messages": ("Messages", listed(record("message"))),
        "Tools": ("Tools", listed(record("tool"))),
        "Think": ("Think", ANY),
        "ThinkLevel": ("ThinkLevel", TEXT),
        "IsThinkSet": ("IsThinkSet", ANY),
    },
    "message": {
        "Role": ("role", TEXT),
        "Content": ("content", TEXT),
        "Thinking": ("thinking", TEXT),
        "Images": ("images", listed(ANY)),
        "ToolCalls": ("tool_calls", listed(record("tool call"))),
        "ToolName": ("tool_name", TEXT),
        "ToolCallID": ("tool_call_id", TEXT),
    },
    "tool call": {"ID": ("id", TEXT), "Function": ("function", record("called function"))},
    "called function": {
        "Index": ("index", NUMBER),
        "Name": ("name", TEXT),
        "Arguments": ("arguments", mapped(ANY)),
    },
    "tool": {"Type": ("type", TEXT), "Items": ("items", ANY), "Function": ("function", record("function"))},
    "function": {
        "Name": ("name", TEXT),
        "Description": ("description", TEXT),
        "Parameters": ("parameters", record("parameters")),
    },
    "parameters": {
        "Type": ("type", TEXT),
        "Defs": ("$defs", ANY),
        "Items": ("items", ANY),
        "Required": ("required", listed(TEXT)),
        "Properties": ("properties", mapped(record("property"))),
    },
    "property": {
        "AnyOf": ("anyOf", listed(record("property"))),
        "Type": ("type", ANY),
        "Items": ("items", ANY),
        "Description": ("description", TEXT),
        "Enum": ("enum", listed(ANY)),
        "Properties": ("properties", mapped(record("property"))),
        "Required": ("required", listed(TEXT)),
    },
}
"""Map from struct and Go field name to key and type. The root's fields keep Go's names."""

_SPECIAL = re.compile(r"[^ -&(-\[\]-~]")
_KEYS = {go: key for fields in list(RECORDS.values())[1:] for go, (key, _) in fields.items()}
_ZERO = {"text": "''", "number": "0", "list": "[]", "map": "{}", "record": "{}"}


@dataclass(frozen=True, slots=True)
class Value:
    """A Jinja expression (in parentheses if it has operators) and the type of its value."""

    code: str
    type: Type = ANY
    literal: str | None = None
    """The string, if it is a literal in the template."""

    @property
    def is_text(self) -> bool:
        """Whether the value is always a string."""
        return self.type == TEXT

    def field(self, name: str) -> Value:
        """Return `.name` of this value. If Ollama's struct has no such field, rendering fails, as in Go."""
        if self.type == record("root"):
            _, type_of_field = RECORDS["root"].get(name, (name, ANY))
            return Value(f"{self.code}[{quoted(name)}]", type_of_field)
        if self.type.kind == "record":
            known = RECORDS[str(self.type.of)].get(name)
            if known is None:
                return _unknown_field(name, str(self.type.of))
            key, type_of_field = known
            zero = _ZERO.get(type_of_field.kind)
            found = f"{self.code}.get({quoted(key)})"
            return Value(f"({found} or {zero})" if zero else found, type_of_field)
        if self.type.kind == "map":
            return Value(f"{self.code}.get({quoted(name)})", item_type(self.type))
        if self.type == ANY:
            return Value(f"({self.code} or {{}}).get({quoted(_KEYS.get(name, name))})")
        return _unknown_field(name, self.type.kind)

    def fields(self, names: tuple[str, ...]) -> Value:
        """Return the value of a chain of fields."""
        value = self
        for name in names:
            value = value.field(name)
        return value


def _unknown_field(name: str, of: str) -> Value:
    message = f"can't evaluate field {name} in a {of}"
    return Value(f"raise_exception({quoted(message)})")


def item_type(of: Type) -> Type:
    """Return the type of the items of a list or map."""
    return of.of if isinstance(of.of, Type) else ANY


def quoted(text: str) -> str:
    """Return a Jinja string literal; nothing in it, not even braces and percent signs, is Jinja syntax."""
    return "'" + _SPECIAL.sub(_escaped, text) + "'"


def _escaped(match: re.Match[str]) -> str:
    char = match[0]
    if char in "\\'":
        return "\\" + char
    if char == "\n":
        return "\\n"
    if char.isprintable():
        return char
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
