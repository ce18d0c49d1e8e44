"""Subschemas with their position in the document, and the targets of `$ref`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import unquote

from referencing import Registry
from referencing.exceptions import InvalidAnchor, NoSuchAnchor, PointerToNowhere, Unresolvable
from referencing.jsonschema import DRAFT7, DRAFT202012, specification_with

from vllama.errors import SchemaError

MOST_VALUES = 50_000
"""Maximum number of JSON values in a schema."""
MOST_LEVELS = 60
"""Maximum nesting of objects and arrays in a schema; vLLM refuses more than 64."""
MOST_POINTER = 4_096
"""Maximum characters of a subschema's JSON pointer: each of thousands of subschemas has one."""


_MODERN = frozenset({"$defs", "prefixItems", "$anchor", "$dynamicAnchor", "dependentSchemas", "dependentRequired"})
"""Keywords that tell a draft after 7, where `$schema` does not."""


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """A subschema: its value, what resolves its references, the draft that it is written in, and its JSON pointer.

    `within` has the identities of the schemas that apply it to the same value: by `allOf`, `$ref`, `anyOf` and others.
    """

    schema: Any
    resolver: Any
    specification: Any
    pointer: str
    within: frozenset[int] = field(default_factory=frozenset)

    def child(self, *keys: str | int) -> Place:
        """Return the subschema under these keys."""
        value, pointer = self.schema, self.pointer
        for key in keys:
            value = value[key]
            pointer += f"/{escaped(str(key))}"
        if len(pointer) > MOST_POINTER:
            raise SchemaError(f"{pointer[:100]}...", f"the names down to it have more than {MOST_POINTER} characters")
        return Place(value, self._resolver_of(value), self.specification, pointer)

    def children(self, keyword: str) -> list[Place]:
        """Return the subschemas of a list. Raises SchemaError unless it is a list with entries."""
        value = self.schema[keyword]
        if not isinstance(value, list) or not value:
            raise SchemaError(f"{self.pointer}/{keyword}", "must be a list of schemas that is not empty")
        return [self.child(keyword, index) for index in range(len(value))]

    def named(self, keyword: str) -> dict[str, Place]:
        """Return the subschemas of an object, by key; without the keyword none. Raises SchemaError for other types."""
        value = self.schema.get(keyword)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise SchemaError(f"{self.pointer}/{keyword}", "must be an object")
        return {name: self.child(keyword, name) for name in value}

    def made(self, schema: Any, keyword: str) -> Place:
        """Return a schema made from a keyword of this one, which resolves references as this one does."""
        return Place(schema, self.resolver, self.specification, f"{self.pointer}/{keyword}")

    def applied_by(self, owner: Place) -> Place:
        """Return this subschema as one that `owner` applies to its own value."""
        return replace(self, within=owner.within | {id(owner.schema)})

    def target(self, reference: Any) -> Place | None:
        """Return what a reference refers to; None if it is in another document.

        Raises SchemaError if there is nothing at this place of the document.
        """
        if not isinstance(reference, str):
            raise SchemaError(f"{self.pointer}/$ref", "must be a string")
        try:
            found = self.resolver.lookup(reference)
        except Exception as error:  # the library walks schemas that may have any shape
            target = self._pointed(reference)
            if target is not None:
                return target
            if reference.startswith("#") or isinstance(error, PointerToNowhere | NoSuchAnchor | InvalidAnchor):
                raise SchemaError(f"{self.pointer}/$ref", f"refers to nothing: {reference}") from error
            return None
        pointer = unquote(reference[1:]) if reference.startswith(("#/", "#")) and reference != "#" else ""
        pointer = pointer if reference.startswith("#") else f"{self.pointer}/$ref"
        return Place(found.contents, found.resolver, self.specification, pointer)

    def _pointed(self, reference: str) -> Place | None:
        """Return the target of a JSON pointer through keywords that this draft lacks, such as a list of `items`."""
        if not reference.startswith("#/"):
            return None
        try:
            value = self.resolver.lookup("#").contents
            for part in unquote(reference[2:]).split("/"):
                key = part.replace("~1", "/").replace("~0", "~")
                value = value[int(key)] if isinstance(value, list) else value[key]
        except (LookupError, TypeError, ValueError, Unresolvable):
            return None
        return Place(value, self.resolver, self.specification, unquote(reference[1:]))

    def _resolver_of(self, value: Any) -> Any:
        if not (isinstance(value, dict) and ("$id" in value or "id" in value)):
            return self.resolver
        try:
            return self.resolver.in_subresource(self.specification.create_resource(value))
        except Exception:  # noqa: BLE001 - what is no URI changes nothing
            return self.resolver


def root_of(schema: Any) -> Place:
    """Return the whole document as a place. Raises SchemaError if it is too large."""
    is_modern = not _MODERN.isdisjoint(_checked_keys(schema))
    declared = schema.get("$schema") if isinstance(schema, dict) else None
    usual = DRAFT202012 if is_modern else DRAFT7
    specification = specification_with(declared, default=usual) if isinstance(declared, str) else usual
    try:
        resolver = Registry().resolver_with_root(specification.create_resource(schema))
    except Exception as error:
        raise SchemaError("", f"has references that cannot be read: {error}") from error
    return Place(schema, resolver, specification, "")


def escaped(key: str) -> str:
    """Return a key as a part of a JSON pointer."""
    return key.replace("~", "~0").replace("/", "~1")


def _checked_keys(schema: Any) -> set[str]:
    """Return the keys of all objects of a schema. Raises SchemaError if it is too large or nested too deeply."""
    left = MOST_VALUES
    keys: set[str] = set()
    level: list[Any] = [schema]
    for _ in range(MOST_LEVELS):
        left -= len(level)
        if left < 0:
            raise SchemaError("", f"it has more than {MOST_VALUES} values")
        keys.update(key for value in level if isinstance(value, dict) for key in value)
        level = [inner for value in level for inner in _inner(value)]
        if not level:
            return keys
    raise SchemaError("", f"it is nested more than {MOST_LEVELS} levels deep")


def _inner(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list):
        yield from value
