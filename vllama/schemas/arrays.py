"""Arrays: tuples, items and their number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from vllama.schemas.numbers import Notes
from vllama.schemas.places import Place
from vllama.schemas.strings import count

KEYWORDS = frozenset({
    "items", "prefixItems", "additionalItems", "minItems", "maxItems", "uniqueItems", "contains", "minContains",
    "maxContains", "unevaluatedItems",
})  # fmt: skip

_MOST_PREFIX = 500


class Children(Notes, Protocol):
    """Rewrites what applies to an entry of a container."""

    def child(self, places: Sequence[Place]) -> dict[str, Any] | None:
        """Return the form for entries of all these schemas, None if there is no such entry."""


def array(places: Sequence[Place], children: Children) -> dict[str, Any] | None:
    """Return the form for arrays of all these schemas, None if there is no such array.

    A tuple that says nothing of its length or of further items is complete: it has all its items and no others.
    """
    prefixes = [_prefix(place) for place in places]
    rests = [_rest(place) for place in places]
    length = min(max(map(len, prefixes), default=0), _MOST_PREFIX)
    least = max((count(place, "minItems") for place in places if "minItems" in place.schema), default=None)
    most = min((count(place, "maxItems") for place in places if "maxItems" in place.schema), default=None)
    closings = _closings(places, prefixes, rests)
    items: list[dict[str, Any]] = []
    for index in range(length if most is None else min(length, most)):
        applied = []
        for prefix, rest in zip(prefixes, rests, strict=True):
            if index < len(prefix):
                applied.append(prefix[index])
            elif rest is not None:
                applied.append(rest)
        applied += [closing for closing, covered in closings if index >= covered]
        form = children.child(applied)
        if form is None:
            most = index
            break
        items.append(form)
    stated = [rest for rest in rests if rest is not None]
    stated += [closing for closing, _ in closings]
    is_complete = bool(length) and not stated and (least or 0) <= length
    rest_form = None if is_complete else children.child(stated)
    if rest_form is None:
        most = len(items) if most is None else min(most, len(items))
    if least is None:
        least = min(len(items), len(items) if most is None else most) if not stated else 0
    if most is not None and least > most:
        owner = next((place for place in places if "minItems" in place.schema), places[0])
        children.never(owner, "minItems")
        return None
    _relax(places, children, most)
    return _form(items, rest_form, least, most)


def _form(items: list[dict[str, Any]], rest: dict[str, Any] | None, least: int, most: int | None) -> dict[str, Any]:
    form: dict[str, Any] = {"type": "array"}
    if most == 0:
        return {**form, "maxItems": 0}
    if items:
        form["prefixItems"] = items
        form["items"] = False if rest is None or most == len(items) else rest
    elif rest or least or most is not None:
        form["items"] = rest or {}
    if least or items:
        form["minItems"] = least
    if most is not None and (rest is not None or most < len(items)):
        form["maxItems"] = most
    return form


def _prefix(place: Place) -> list[Place]:
    for keyword in ("prefixItems", "items"):
        if isinstance(place.schema.get(keyword), list):
            return [place.child(keyword, index) for index in range(len(place.schema[keyword]))]
    return []


def _rest(place: Place) -> Place | None:
    """Return what applies to the items after a tuple's; None if the schema says nothing of them."""
    keyword = "additionalItems" if isinstance(place.schema.get("items"), list) else "items"
    return place.child(keyword) if keyword in place.schema else None


def _closings(
    places: Sequence[Place], prefixes: list[list[Place]], rests: list[Place | None]
) -> list[tuple[Place, int]]:
    """Return what `unevaluatedItems` says, and for how many items the schemas within its own say something else."""
    closings = []
    for place in places:
        if "unevaluatedItems" not in place.schema:
            continue
        inside = [
            (prefix, rest)
            for other, prefix, rest in zip(places, prefixes, rests, strict=True)
            if other is place or id(place.schema) in other.within
        ]
        if all(rest is None for _, rest in inside):
            closings.append((place.child("unevaluatedItems"), max(len(prefix) for prefix, _ in inside)))
    return closings


def _relax(places: Sequence[Place], notes: Notes, most: int | None) -> None:
    for place in places:
        schema = place.schema
        if schema.get("uniqueItems") is True and (most is None or most > 1):
            notes.relax(place, "uniqueItems")
        if "contains" not in schema:
            continue
        if schema.get("minContains") != 0 or "maxContains" in schema:
            notes.relax(place, "contains")
