"""What Ollama's templates see of a conversation, and how Jinja reaches it.

Ollama hands its templates structs with Go's names; vLLM hands its templates dictionaries in OpenAI's shape. Types are
followed through the template, so that each `.Name` becomes the right key, and a nil in between does no harm.
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
    """A list of something."""
    return Type("list", of)


def mapped(of: Type) -> Type:
    """A map from text to something."""
    return Type("map", of)


def record(name: str) -> Type:
    """A struct of Ollama's."""
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
"""Go's name of a field to its key and type. The root's are made by the translation and keep Go's names."""

_SPECIAL = re.compile(r"[^ -&(-\[\]-~]")
_KEYS = {go: key for fields in list(RECORDS.values())[1:] for go, (key, _) in fields.items()}
_ZERO = {"text": "''", "number": "0", "list": "[]", "map": "{}", "record": "{}"}


@dataclass(frozen=True, slots=True)
class Value:
    """A Jinja expression, in parentheses where it has operators, and the type of its value."""

    code: str
    type: Type = ANY
    literal: str | None = None
    """The string, where the template spells it out."""

    @property
    def is_text(self) -> bool:
        """Whether it is surely a string."""
        return self.type == TEXT

    def field(self, name: str) -> Value:
        """`.name` of this value. Where Ollama's struct has no such field, rendering fails, as it does in Go."""
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
        """A chain of fields."""
        value = self
        for name in names:
            value = value.field(name)
        return value


def _unknown_field(name: str, of: str) -> Value:
    message = f"can't evaluate field {name} in a {of}"
    return Value(f"raise_exception({quoted(message)})")


def item_type(of: Type) -> Type:
    """The type of what a list or a map holds."""
    return of.of if isinstance(of.of, Type) else ANY


def quoted(text: str) -> str:
    """A Jinja string literal; whatever it holds, braces and percent signs too, is no syntax to Jinja."""
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
