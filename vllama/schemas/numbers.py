"""Integers and numbers: bounds and multiples."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from vllama.schemas.places import Place

KEYWORDS = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"})

_MOST_MULTIPLES = 256
"""Maximum number of multiples that are written out as an enumeration."""
_MOST_INTEGER = 2**53
"""Bounds beyond this are left out: grammars compute them in floating point."""

Bound = tuple[int | float, bool]
"""A bound, and whether it is excluded."""


class Notes(Protocol):
    """Takes what is relaxed and what cannot be satisfied."""

    def relax(self, place: Place, keyword: str) -> None:
        """List a keyword as not enforced."""

    def never(self, place: Place, keyword: str) -> None:
        """Record that this keyword leaves no value."""


def number(places: Sequence[Place], notes: Notes, *, whole: bool) -> dict[str, Any] | None:
    """Return the form for numbers of all these schemas, None if there is no such number."""
    multiples = [(place, place.schema["multipleOf"]) for place in places if _is_number(place.schema.get("multipleOf"))]
    if any(float(multiple).is_integer() and multiple > 0 for _, multiple in multiples):
        whole = True
    lowest = max(_bounds(places, "minimum", "exclusiveMinimum"), key=lambda bound: (bound[0], bound[1]), default=None)
    highest = min(
        _bounds(places, "maximum", "exclusiveMaximum"), key=lambda bound: (bound[0], not bound[1]), default=None
    )
    if whole:
        lowest, highest = _ceiled(lowest), _floored(highest)
    owner = next((place for place in places if place.schema.keys() & KEYWORDS), places[0])
    if lowest and highest and (lowest[0] > highest[0] or (lowest[0] == highest[0] and (lowest[1] or highest[1]))):
        notes.never(owner, "minimum" if "minimum" in owner.schema else "maximum")
        return None
    left = [(place, multiple) for place, multiple in multiples if not (whole and multiple == 1)]
    if left:
        listed = _listed(lowest, highest, [multiple for _, multiple in left]) if whole else None
        if listed:
            return {"enum": listed}
        if listed is not None:
            notes.never(left[0][0], "multipleOf")
            return None
        for place, _ in left:
            notes.relax(place, "multipleOf")
    form: dict[str, Any] = {"type": "integer" if whole else "number"}
    for bound, inclusive, exclusive in (
        (lowest, "minimum", "exclusiveMinimum"),
        (highest, "maximum", "exclusiveMaximum"),
    ):
        if bound is None:
            continue
        value, excluded = bound
        if abs(value) > _MOST_INTEGER or 0 < abs(value) < 1e-6:
            relaxed = _stated(places, inclusive, exclusive)
            if relaxed:
                notes.relax(*relaxed)
            continue
        form[exclusive if excluded else inclusive] = value
    return form


def _bounds(places: Sequence[Place], inclusive: str, exclusive: str) -> Iterator[Bound]:
    for place in places:
        value, excluded = place.schema.get(inclusive), place.schema.get(exclusive)
        if _is_number(value):
            yield value, excluded is True  # a boolean in draft 4
        if _is_number(excluded):
            yield excluded, True


def _stated(places: Sequence[Place], *keywords: str) -> tuple[Place, str] | None:
    return next(((place, keyword) for place in places for keyword in keywords if keyword in place.schema), None)


def _ceiled(bound: Bound | None) -> Bound | None:
    if bound is None:
        return None
    least = math.ceil(bound[0])
    return (least + 1 if bound[1] and least == bound[0] else least), False


def _floored(bound: Bound | None) -> Bound | None:
    if bound is None:
        return None
    most = math.floor(bound[0])
    return (most - 1 if bound[1] and most == bound[0] else most), False


def _listed(lowest: Bound | None, highest: Bound | None, multiples: Sequence[float]) -> list[int] | None:
    """Return the integers within the bounds that are multiples; None if they are too many."""
    if lowest is None or highest is None or highest[0] - lowest[0] > _MOST_MULTIPLES * max(multiples):
        return None
    if highest[0] - lowest[0] > _MOST_MULTIPLES**2:
        return None
    between = range(int(lowest[0]), int(highest[0]) + 1)
    found = [value for value in between if all(multiple > 0 and value % multiple == 0 for multiple in multiples)]
    return found if len(found) <= _MOST_MULTIPLES else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
