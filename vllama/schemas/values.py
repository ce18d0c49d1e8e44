"""Enumerations: which of their values the other keywords of a schema admit."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from jsonschema import Draft7Validator, Draft202012Validator

from vllama.schemas import patterns
from vllama.schemas.places import Place

# What is applied elsewhere, or says nothing about a single value.
_APPLIED = frozenset({
    "$ref", "$dynamicRef", "$recursiveRef", "allOf", "anyOf", "oneOf", "if", "then", "else", "dependentSchemas",
    "dependentRequired", "dependencies", "unevaluatedProperties", "unevaluatedItems", "$defs", "definitions", "$id",
    "$schema", "$anchor", "$dynamicAnchor", "id", "format", "enum", "const",
})  # fmt: skip
_OF_CONTAINERS = frozenset({
    "properties", "patternProperties", "additionalProperties", "propertyNames", "items", "prefixItems",
    "additionalItems", "contains",
})  # fmt: skip
_OF_DRAFT_7 = ("additionalItems", "dependencies")
_LISTS = frozenset({"enum", "const"})
_ANNOTATIONS = frozenset({"$defs", "definitions", "$id", "$schema", "$anchor", "$dynamicAnchor", "id"})


_MOST_VERDICTS = 60_000
"""Maximum number of checks for one enumeration; each takes some 20 µs, and the server waits for them."""

_MOST_CHARACTERS = 10_000
"""Maximum size of an array or object that is checked, as JSON: `uniqueItems` compares each entry with each other."""

Verdict = Callable[[Any, str], bool | None]
"""Returns whether a value, given with its `key`, is admitted; None if that is not known."""


def admitted(values: Sequence[Any], places: Sequence[Place], negated: Sequence[Place]) -> tuple[list[Any], bool]:
    """Return the values that all schemas admit and no negated one does, and whether each of them could be checked."""
    left = {key(value): value for value in values}
    for place in places:
        for listed in (place.schema.get("enum"), [place.schema["const"]] if "const" in place.schema else None):
            if isinstance(listed, list):
                allowed = set(map(key, listed))
                left = {name: value for name, value in left.items() if name in allowed}
    verdicts = [verdict for place in places if (verdict := _admission(place.schema)) is not None]
    refusals = [_refusal(place.schema) for place in negated]
    if len(left) * (len(verdicts) + len(refusals)) > _MOST_VERDICTS:
        return list(left.values()), False
    kept: list[Any] = []
    is_sure = True
    for text, value in left.items():
        found = [verdict(value, text) for verdict in (*verdicts, *refusals)]
        if False not in found:
            kept.append(value)
            is_sure = is_sure and None not in found
    return kept, is_sure


def key(value: Any) -> str:
    """Return a text that equal values of JSON share; 1 and 1.0 are equal."""
    return json.dumps(value if isinstance(value, str) else _plain(value), sort_keys=True)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    return value


def matches(pattern: str, text: str) -> bool | None:
    """Return whether a pattern is somewhere in a text; None if that is not known."""
    try:
        return patterns.matches(pattern, text)
    except ValueError:
        return None


def _admission(schema: Any) -> Verdict | None:
    """Return what decides whether a schema admits a value, without what it refers to; None if all are admitted."""
    if isinstance(schema, bool):
        return lambda *_: schema
    stated = {name: entry for name, entry in schema.items() if name not in _APPLIED}
    pattern = stated.pop("pattern", None)
    for_others = {name: entry for name, entry in stated.items() if name not in _OF_CONTAINERS}
    if pattern is None and not stated:
        return None
    admits, admits_others = _validator(stated), _validator(for_others)

    def verdict(value: Any, text: str) -> bool | None:
        if isinstance(value, str) and isinstance(pattern, str) and (found := matches(pattern, value)) is not True:
            return found
        return (admits if isinstance(value, dict | list) else admits_others)(value, text)

    return verdict


def _validator(stated: dict[str, Any]) -> Verdict:
    # Python's regular expressions can take for ever, and what is referred to is elsewhere.
    as_json = json.dumps(stated)
    if any(f'"{keyword}"' in as_json for keyword in ("$ref", "pattern", "patternProperties")):
        return lambda *_: None
    is_draft_7 = isinstance(stated.get("items"), list) or any(name in stated for name in _OF_DRAFT_7)
    validator = (Draft7Validator if is_draft_7 else Draft202012Validator)(stated)

    def verdict(value: Any, text: str) -> bool | None:
        if isinstance(value, dict | list) and len(text) > _MOST_CHARACTERS:
            return None
        try:
            return bool(validator.is_valid(value))
        except Exception:  # noqa: BLE001 - a keyword that the library cannot read
            return None

    return verdict


def _refusal(schema: Any) -> Verdict:
    """Return what decides whether a schema refuses a value."""
    if isinstance(schema, dict) and schema.keys() & (_APPLIED - _ANNOTATIONS - _LISTS):
        return lambda *_: None
    admission = _admission(schema) or (lambda *_: True)
    listed = (
        [
            set(map(key, values))
            for values in (schema.get("enum"), [schema["const"]] if "const" in schema else None)
            if isinstance(values, list)
        ]
        if isinstance(schema, dict)
        else []
    )

    def verdict(value: Any, text: str) -> bool | None:
        if any(text not in allowed for allowed in listed):
            return True
        found = admission(value, text)
        return None if found is None else not found

    return verdict
