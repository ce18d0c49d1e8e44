"""Objects: properties, patterns of their names, and their number."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from vllama.errors import SchemaError
from vllama.schemas import values
from vllama.schemas.arrays import Children
from vllama.schemas.patterns import Language, any_text
from vllama.schemas.places import Place
from vllama.schemas.strings import anchored, count, read_pattern

KEYWORDS = frozenset({
    "properties", "required", "additionalProperties", "patternProperties", "propertyNames", "minProperties",
    "maxProperties", "unevaluatedProperties",
})  # fmt: skip

Form = dict[str, Any]

_MOST_PAIRS = 5_000
"""Maximum number of names that are compared with patterns in one object."""


@dataclass(slots=True)
class _Own:
    """What one schema says of properties."""

    place: Place
    named: dict[str, Place]
    patterned: list[tuple[str, Language | None, Place]]
    rest: Place | None

    def of(self, name: str) -> list[Place] | None:
        """Return what applies to a property; None if the schema says nothing of it."""
        found = [self.named[name]] if name in self.named else []
        found += [place for pattern, _, place in self.patterned if values.matches(pattern, name) is not False]
        if not found and self.rest is not None:
            found = [self.rest]
        return found or None


@dataclass(slots=True)
class _Names:
    """What `propertyNames` leaves of the names that no schema lists."""

    pattern: Language | None = None
    listed: list[str] | None = None
    relaxed: list[Place] = field(default_factory=list)


def obj(places: Sequence[Place], children: Children) -> Form | None:
    """Return the form for objects of all these schemas, None if there is no such object.

    An object that lists properties and says nothing of others has no others.
    """
    owns = _without_mutual_exclusion([_own(place) for place in places], children)
    required = _required(places)
    names = dict.fromkeys([name for own in owns for name in own.named] + list(required))
    if len(names) * sum(len(own.patterned) for own in owns) > _MOST_PAIRS:
        raise SchemaError(places[0].pointer, f"more than {_MOST_PAIRS} pairs of a property and a pattern of names")
    properties = _properties(names, required, places, owns, children)
    if properties is None:
        return None
    rest = _rest(owns, children, has_enough=bool(names) and _least(places) <= len(properties))
    forbidden = [own.place for own in owns if own.named.keys() - properties.keys()]
    if rest is not None and forbidden:
        children.relax(forbidden[0], "properties")  # the grammar cannot exclude a name among others
    left = _names(places, children)
    patterned: dict[str, Form] = {}
    if any(own.patterned for own in owns):
        patterned, rest = _patterned(owns, rest, left, children, has_names=bool(names))
    elif left.listed is not None and rest is not None:
        properties |= {name: rest for name in left.listed if name not in names}
        rest = None
    elif left.pattern is not None and rest is not None:
        if properties:
            left.relaxed += [place for place in places if "propertyNames" in place.schema]
        else:
            patterned, rest = {anchored(left.pattern): rest}, None
    for place in left.relaxed:
        if rest is not None or patterned:
            children.relax(place, "propertyNames")
    return _counted(places, children, properties=properties, required=required, patterned=patterned, rest=rest)


def _properties(
    names: Iterable[str],
    required: dict[str, Place],
    places: Sequence[Place],
    owns: Sequence[_Own],
    children: Children,
) -> dict[str, Form] | None:
    """Return the forms of the properties that may be there; None if a required one may not."""
    properties: dict[str, Form] = {}
    for name in names:
        form = children.child(_applied(name, owns)) if _is_named(name, places, children) else None
        if form is not None:
            properties[name] = form
        elif name in required:
            children.never(required[name], "required")
            return None
    return properties


def _counted(
    places: Sequence[Place],
    children: Children,
    *,
    properties: dict[str, Form],
    required: dict[str, Place],
    patterned: dict[str, Form],
    rest: Form | None,
) -> Form | None:
    """Return the form with its minimum and maximum number of properties."""
    least = _least(places)
    most = min((count(place, "maxProperties") for place in places if "maxProperties" in place.schema), default=None)
    is_closed = rest is None and not patterned
    if (most is not None and most < max(least, len(required))) or (is_closed and least > len(properties)):
        keyword = "maxProperties" if most is not None and most < max(least, len(required)) else "minProperties"
        children.never(next((place for place in places if keyword in place.schema), places[0]), keyword)
        return None
    form: Form = {"type": "object"}
    if patterned:
        form["patternProperties"] = patterned
    else:
        form["properties"] = properties
        if required:
            form["required"] = list(required)
    form["additionalProperties"] = False if rest is None else rest or True
    if not properties and rest is not None:
        del form["properties"]
        if not rest and not least and most is None:
            del form["additionalProperties"]
    if least > len(required):
        form["minProperties"] = least
    if most is not None and not (is_closed and most >= len(properties)):
        form["maxProperties"] = most
    return form


def _least(places: Sequence[Place]) -> int:
    return max((count(place, "minProperties") for place in places if "minProperties" in place.schema), default=0)


def _own(place: Place) -> _Own:
    patterned = []
    for pattern, inner in place.named("patternProperties").items():
        written = read_pattern(pattern, f"{place.pointer}/patternProperties")
        patterned.append((pattern, written, inner))
    rest = place.child("additionalProperties") if "additionalProperties" in place.schema else None
    return _Own(place, place.named("properties"), patterned, rest)


def _without_mutual_exclusion(owns: list[_Own], children: Children) -> list[_Own]:
    """Let closed objects of an intersection have each other's properties, as the generators that write these mean it.

    Taken by the letter, `allOf` of two objects with different properties and `additionalProperties: false` in both
    leaves only the properties that they share.
    """
    closed = [own for own in owns if own.rest is not None and own.rest.schema is False]
    names = {name for own in closed for name in own.named}
    excluding = [own for own in closed if names - own.named.keys()]
    if len(excluding) < 2:
        return owns
    for own in excluding:
        children.relax(own.place, "additionalProperties")
        own.rest = None
    return owns


def _required(places: Sequence[Place]) -> dict[str, Place]:
    required: dict[str, Place] = {}
    for place in places:
        stated = place.schema.get("required", [])
        if isinstance(stated, bool):  # in draft 3, and in many schemas written by hand
            continue
        if not isinstance(stated, list) or not all(isinstance(name, str) for name in stated):
            raise SchemaError(f"{place.pointer}/required", "must be a list of names")
        for name in stated:
            required.setdefault(name, place)
    return required


def _applied(name: str, owns: Sequence[_Own]) -> list[Place]:
    """Return all that applies to a property of this name."""
    applied = []
    for own in owns:
        applied += own.of(name) or []
        if "unevaluatedProperties" in own.place.schema and not any(
            inner.of(name) for inner in owns if _is_inside(inner, own)
        ):
            applied.append(own.place.child("unevaluatedProperties"))
    return applied


def _rest(owns: Sequence[_Own], children: Children, *, has_enough: bool) -> Form | None:
    """Return the form of properties that no schema names; None if there are none."""
    stated = [own.rest for own in owns if own.rest is not None]
    stated += [
        own.place.child("unevaluatedProperties")
        for own in owns
        if "unevaluatedProperties" in own.place.schema
        and all(inner.rest is None for inner in owns if _is_inside(inner, own))
    ]
    if not stated and (has_enough or any(own.patterned for own in owns)):
        return None
    return children.child(stated)


def _is_inside(inner: _Own, own: _Own) -> bool:
    return inner is own or id(own.place.schema) in inner.place.within


def _patterned(
    owns: Sequence[_Own], rest: Form | None, left: _Names, children: Children, *, has_names: bool
) -> tuple[dict[str, Form], Form | None]:
    """Return what grammars can say of names with patterns: one pattern, with nothing beside it."""
    entries = [(own, *entry) for own in owns for entry in own.patterned]
    forms = [(own, written, children.child([place])) for own, _, written, place in entries]
    allowed = [(written, form) for _, written, form in forms if form is not None]
    is_alike = len({json.dumps(form, sort_keys=True) for _, form in allowed}) == 1
    is_written = all(written is not None for _, written, _ in forms)
    is_plain = not has_names and rest is None and left.pattern is None and left.listed is None and not left.relaxed
    if not allowed and rest is None:
        return {}, None
    if is_plain and is_alike and is_written and len(allowed) == len(forms) and len({id(own) for own, *_ in forms}) == 1:
        texts = [written.text for written, _ in allowed if written is not None]
        text = texts[0] if len(texts) == 1 else "|".join(f"({text})" for text in texts)
        form = allowed[0][1]
        return {anchored(Language(text, 0, None)): form}, None
    for own in dict.fromkeys(own.place for own, *_ in forms):
        children.relax(own, "patternProperties")
    if rest == {}:
        return {}, rest
    options = [form for _, form in allowed] + ([rest] if rest is not None else [])
    return {}, options[0] if len(options) == 1 else {"anyOf": options}


def _names(places: Sequence[Place], children: Children) -> _Names:
    """Return what names may be besides the listed ones."""
    found = _Names()
    for place in places:
        if "propertyNames" not in place.schema:
            continue
        form = children.child([place.child("propertyNames")])
        if form == {} or (form and form == {"type": "string"}):
            continue
        pattern: Language | None = None
        if form and form.get("type") == "string" and "pattern" in form:
            pattern = read_pattern(form["pattern"], place.pointer)
        elif form and form.get("type") == "string" and "format" not in form:
            pattern = any_text(form.get("minLength", 0), form.get("maxLength"))
        listed = [] if form is None else [name for name in form.get("enum", []) if isinstance(name, str)]
        if form is None or "enum" in form:
            found.listed = listed if found.listed is None else [name for name in found.listed if name in listed]
        elif pattern is not None and found.pattern is None:
            found.pattern = pattern
        else:
            found.relaxed.append(place)
    if found.listed is not None and found.pattern is not None:
        found.pattern = None
    return found


def _is_named(name: str, places: Sequence[Place], children: Children) -> bool:
    """Return whether `propertyNames` admits a name; what it refers to is not followed."""
    named = [place.child("propertyNames") for place in places if "propertyNames" in place.schema]
    if not named:
        return True
    kept, is_sure = values.admitted([name], named, [])
    if kept and not is_sure:
        for place in places:
            if "propertyNames" in place.schema:
                children.relax(place, "propertyNames")
    return bool(kept)
