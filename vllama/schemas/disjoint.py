"""Whether alternatives exclude each other, which is what `oneOf` says beyond `anyOf`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

from vllama.schemas.values import key

Form = dict[str, Any]

_MOST_LEVELS = 4
"""How deep inside required properties a difference is looked for."""
_MOST_FORMS = 100


def are_disjoint(forms: Sequence[Form], definitions: dict[str, Form]) -> bool:
    """Return whether no value has two of these forms, as far as types, enumerations and required properties tell."""
    if len(forms) > _MOST_FORMS:
        return False
    return all(_are_apart(one, other, definitions, _MOST_LEVELS) for one, other in combinations(forms, 2))


def _are_apart(one: Form, other: Form, definitions: dict[str, Form], levels: int) -> bool:
    if not levels:
        return False
    one, other = _resolved(one, definitions), _resolved(other, definitions)
    for whole, rest in ((one, other), (other, one)):
        if "anyOf" in whole:
            return all(_are_apart(part, rest, definitions, levels - 1) for part in whole["anyOf"])
    types, other_types = _types(one), _types(other)
    if types is None or other_types is None:
        return False
    if not types & other_types:
        return True
    if "enum" in one and "enum" in other:
        return set(map(key, one["enum"])).isdisjoint(map(key, other["enum"]))
    if one.get("type") == other.get("type") == "object":
        shared = set(one.get("required", ())) & set(other.get("required", ()))
        pairs = [(one["properties"][name], other["properties"][name]) for name in shared]
        return any(_are_apart(*pair, definitions, levels - 1) for pair in pairs)
    return False


def _resolved(form: Form, definitions: dict[str, Form]) -> Form:
    for _ in range(len(definitions) + 1):
        if "$ref" not in form:
            return form
        form = definitions.get(form["$ref"].rpartition("/")[2]) or {}
    return {}


def _types(form: Form) -> set[str] | None:
    if "enum" in form:
        return {_type_of(value) for value in form["enum"]}
    kind = form.get("type")
    return None if kind is None else {"number" if kind == "integer" else str(kind)}


def _type_of(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, str):
        return "string"
    return "null" if value is None else "array" if isinstance(value, list) else "object"
