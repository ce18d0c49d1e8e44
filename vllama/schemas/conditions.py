"""Alternatives: `anyOf` and `oneOf`, and conditions as the alternatives that they stand for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from vllama.errors import SchemaError
from vllama.schemas.places import Place

KEYWORDS = frozenset({
    "anyOf", "oneOf", "if", "then", "else", "dependentRequired", "dependentSchemas", "dependencies",
})  # fmt: skip

_ANNOTATIONS = frozenset({
    "title", "description", "$comment", "default", "examples", "deprecated", "readOnly", "writeOnly",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Choice:
    """Alternatives of one keyword: each is a list of schemas that apply together."""

    owner: Place
    keyword: str
    options: tuple[tuple[Place, ...], ...]
    is_exact: bool = True
    """Whether the options say all that the keyword says, apart from `oneOf`'s exclusion."""


def choices(place: Place) -> Iterator[Choice]:
    """Return the choices that a schema leaves. Raises SchemaError for malformed ones."""
    schema = place.schema
    for keyword in ("anyOf", "oneOf"):
        if keyword in schema:
            yield Choice(place, keyword, tuple((option.applied_by(place),) for option in place.children(keyword)))
    if "if" in schema and ("then" in schema or "else" in schema):
        yield _condition(place)
    for keyword in ("dependentRequired", "dependentSchemas", "dependencies"):
        for name, needed in place.named(keyword).items():
            yield _dependency(place, keyword, name, needed)


def negation(place: Place) -> list[tuple[Place, ...]] | None:
    """Return the alternatives that a negated schema stands for; None if they are not known."""
    schema = place.schema
    if isinstance(schema, bool):
        return [] if schema else [()]
    if not isinstance(schema, dict):
        raise SchemaError(place.pointer, "is no schema")
    stated = {name: value for name, value in schema.items() if name not in _ANNOTATIONS}
    if not stated:
        return []
    if stated.keys() == {"not"}:
        return [(place.child("not"),)]
    if stated.keys() == {"anyOf"}:
        options = place.children("anyOf")
        return [tuple(place.made({"not": option.schema}, f"anyOf/{i}") for i, option in enumerate(options))]
    return _negated_object(place, stated)


def _negated_object(place: Place, stated: dict[str, Any]) -> list[tuple[Place, ...]] | None:
    """Return the alternatives to an object with certain properties, one for each property that may differ."""
    properties, required = stated.get("properties", {}), stated.get("required", [])
    if not stated.keys() <= {"properties", "required", "type"} or not (properties or required):
        return None
    if not isinstance(properties, dict) or not isinstance(required, list) or stated.get("type", "object") != "object":
        return None
    names = dict.fromkeys([*properties, *(name for name in required if isinstance(name, str))])
    options: list[tuple[Place, ...]] = []
    for name in names:
        differs: dict[str, Any] = {"type": "object"}
        differs["properties"] = {name: {"not": properties[name]} if name in properties else False}
        if name not in required:
            differs["required"] = [name]
        options.append((place.made(differs, ""),))
    if "type" in stated:
        options.append((place.made({"not": {"type": "object"}}, ""),))
    return options


def _condition(place: Place) -> Choice:
    condition = place.child("if").applied_by(place)
    options: list[tuple[Place, ...]] = []
    then = (place.child("then").applied_by(place),) if "then" in place.schema else ()
    options.append((condition, *then))
    otherwise = (place.child("else").applied_by(place),) if "else" in place.schema else ()
    negated = negation(place.child("if"))
    if negated is None:
        options.append(otherwise)
    else:
        options += [(*option, *otherwise) for option in negated]
    return Choice(place, "if", tuple(options), is_exact=negated is not None)


def _dependency(place: Place, keyword: str, name: str, needed: Place) -> Choice:
    """Return the two ways to satisfy a dependency: without the property, or with it and what it needs."""
    without = place.made({"properties": {name: False}}, keyword)
    if isinstance(needed.schema, list):
        return Choice(place, keyword, ((place.made({"required": [name, *needed.schema]}, keyword),), (without,)))
    if keyword == "dependentRequired":
        raise SchemaError(f"{place.pointer}/{keyword}", "must be an object of lists of names")
    with_it = place.made({"required": [name]}, keyword)
    return Choice(place, keyword, ((with_it, needed.applied_by(place)), (without,)))
