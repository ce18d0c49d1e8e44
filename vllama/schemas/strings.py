"""Strings: lengths, patterns and formats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vllama.errors import SchemaError
from vllama.schemas.numbers import Notes
from vllama.schemas.patterns import InvalidPattern, Language, UnenforceablePattern, language
from vllama.schemas.places import Place

KEYWORDS = frozenset({"minLength", "maxLength", "pattern", "format"})

ENGINES_FORMATS = frozenset({"email", "duration", "ipv6", "hostname", "uuid", "uri"})
"""The formats for which the engines have right grammars."""

_DATE = (
    r"(\d{4}-(((0[13578]|1[02])-(0[1-9]|[12]\d|3[01]))|((0[469]|11)-(0[1-9]|[12]\d|30))|(02-(0[1-9]|1\d|2[0-8])))"
    r"|(\d\d(0[48]|[2468][048]|[13579][26])|([02468][048]|[13579][26])00)-02-29)"
)
_TIME = r"([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,9})?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)"
_BYTE = r"(25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_POINTER = r"(\/([^\/~]|~[01])*)*"
FORMATS_AS_PATTERNS = {
    "date": f"^{_DATE}$",
    "time": f"^{_TIME}$",
    "date-time": f"^{_DATE}T{_TIME}$",
    "uri-reference": r"^[^\s<>{}|^`]*$",
    "uri-template": r"^([^\s<>{}|^`]|\{[^\s<>{}|^`]+\})*$",
    "ipv4": rf"^{_BYTE}(\.{_BYTE}){{3}}$",
    "json-pointer": f"^{_POINTER}$",
    "relative-json-pointer": rf"^(0|[1-9]\d*)(#|{_POINTER})$",
}
"""Formats whose grammars in the engines allow what is wrong: leap seconds at any time, zeros in front, raw quotes."""

_MOST_CHARACTERS = 2**31 - 1


def string(places: Sequence[Place], notes: Notes) -> dict[str, Any] | None:
    """Return the form for strings of all these schemas, None if there is no such string.

    A grammar takes either a pattern, a format or lengths. The pattern comes first, because formats are annotations.
    """
    shortest, longest = _lengths(places)
    if longest is not None and longest < shortest:
        notes.never(_owner(places, "maxLength"), "maxLength")
        return None
    written = _patterns(places, notes, shortest, longest)
    wanted = _format(places, notes, is_free=written is None)
    if wanted in FORMATS_AS_PATTERNS:
        written = language(FORMATS_AS_PATTERNS[wanted])
    is_too_short = shortest > (written.least if written else 1)  # no other format has an empty string
    is_too_long = longest is not None and (written is None or written.most is None or written.most > longest)
    if written or wanted:
        for keyword, is_left_out in (("minLength", is_too_short), ("maxLength", is_too_long)):
            if is_left_out:
                notes.relax(_owner(places, keyword), keyword)
        return {"type": "string", **({"pattern": anchored(written)} if written else {"format": wanted})}
    form: dict[str, Any] = {"type": "string"}
    if shortest:
        form["minLength"] = shortest
    if longest is not None and longest < _MOST_CHARACTERS:
        form["maxLength"] = longest
    return form


def _format(places: Sequence[Place], notes: Notes, *, is_free: bool) -> str | None:
    """Return the first known format, unless a pattern comes before it; the others are relaxed."""
    formats = [place for place in places if isinstance(place.schema.get("format"), str)]
    known = ENGINES_FORMATS | FORMATS_AS_PATTERNS.keys() if is_free else frozenset()
    wanted = next((place.schema["format"] for place in formats if place.schema["format"] in known), None)
    for place in formats:
        if place.schema["format"] != wanted:
            notes.relax(place, "format")
    return wanted


def anchored(written: Language) -> str:
    """Return the text of a pattern for the whole string."""
    return f"^({written.text})$" if "|" in written.text else f"^{written.text}$"


def read_pattern(pattern: Any, pointer: str) -> Language | None:
    """Return a rewritten pattern, None if grammars lack one of its constructs. Raises SchemaError if it is invalid."""
    if not isinstance(pattern, str):
        raise SchemaError(pointer, "must be a string")
    try:
        written = language(pattern)
    except InvalidPattern as error:
        raise SchemaError(pointer, f"is no regular expression: {error}: {pattern}") from error
    except UnenforceablePattern:
        return None
    return None if written.is_empty else written


def _patterns(places: Sequence[Place], notes: Notes, shortest: int, longest: int | None) -> Language | None:
    """Return the first pattern that can be enforced and matters; the others are relaxed."""
    chosen: Language | None = None
    for place in places:
        if "pattern" not in place.schema:
            continue
        pattern = place.schema["pattern"]
        written = read_pattern(pattern, f"{place.pointer}/pattern")
        if written is None or chosen is not None:
            notes.relax(place, "pattern")
        elif not (written.is_any and written.least == 0 and written.most is None):
            limited = language(pattern, shortest, longest)
            chosen = written if limited.is_empty else limited
    return chosen


def _lengths(places: Sequence[Place]) -> tuple[int, int | None]:
    shortest = [count(place, "minLength") for place in places if "minLength" in place.schema]
    longest = [count(place, "maxLength") for place in places if "maxLength" in place.schema]
    return max(shortest, default=0), min(longest, default=None)


def count(place: Place, keyword: str) -> int:
    """Return a length or number of entries. Raises SchemaError unless it is a whole number that is not negative."""
    value = place.schema[keyword]
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or value != int(value):
        raise SchemaError(f"{place.pointer}/{keyword}", "must be a whole number that is not negative")
    return min(int(value), _MOST_CHARACTERS)


def _owner(places: Sequence[Place], keyword: str) -> Place:
    return next((place for place in places if keyword in place.schema), places[0])
