"""The rewriter: from a schema to a form that grammars enforce, one set of schemas for the same value at a time.

`allOf`, `$ref` and the siblings of `anyOf` all say that several schemas hold for one value. So the unit is a set of
schemas: it is expanded until no such keyword is left, each choice becomes an alternative, and what remains is merged
by type. Sets that were seen before become definitions, which ends recursion.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from hashlib import sha256
from sys import getsizeof
from threading import Lock
from typing import Any
from urllib.parse import quote

import orjson
from cachetools import LRUCache, cached

from vllama.errors import SchemaError
from vllama.schema_size import most_properties
from vllama.schemas import arrays, conditions, finite, numbers, objects, strings, values
from vllama.schemas.conditions import Choice
from vllama.schemas.disjoint import are_disjoint
from vllama.schemas.patterns import check_pattern_cost
from vllama.schemas.places import Place, root_of

Form = dict[str, Any]

_MOST_FORMS = 10_000
"""Maximum number of sets of schemas that one schema is taken apart into."""
_MOST_LEVELS = 80
"""Maximum nesting of the values that a schema describes, up to where it repeats itself."""
_LEVELS_IN_ONE = 8
"""After so many levels a form becomes a definition: vLLM refuses schemas with more than 64 levels of JSON."""
_MOST_BYTES = 2**20
"""Maximum size of a schema and of its form, as JSON."""
_MOST_KEPT = 8 * 2**20
"""Maximum memory of the results that are kept, in bytes."""
_MOST_ALTERNATIVES = 64
"""Maximum number of alternatives for one value; choices beyond that are relaxed."""

_TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
_ANYTHING = frozenset(_TYPES) - {"integer"}
_FAMILIES = {
    "object": objects.KEYWORDS | {"dependentRequired", "dependentSchemas", "dependencies"},
    "array": arrays.KEYWORDS,
    "string": strings.KEYWORDS,
    "number": numbers.KEYWORDS,
}
_KEYWORDS = frozenset.union(*_FAMILIES.values(), {"type", "enum", "const", "not", "$dynamicRef", "$recursiveRef"})


@dataclass(frozen=True, slots=True)
class Rewritten:
    """A schema in the forms that grammars enforce, and the JSON pointers of the keywords that it leaves out.

    `form` is JSON, for results are kept: objects would lie between those of other work, whose memory then stays taken.
    """

    form: bytes
    relaxed: tuple[str, ...] = ()

    @property
    def schema(self) -> Form:
        """The form as objects, made anew each time."""
        form: Form = orjson.loads(self.form)
        return form

    @property
    def memory(self) -> int:
        """The bytes of memory that both take."""
        return len(self.form) + sum(map(getsizeof, self.relaxed))

    def header(self, most: int = 1000) -> str:
        """Return the pointers as the value of an HTTP header of about `most` characters, the rest as their number."""
        shown: list[str] = []
        for pointer in self.relaxed:
            text = quote(pointer, safe="/$~!*'()")
            if sum(map(len, shown)) + len(text) > most:
                break
            shown.append(text)
        left = len(self.relaxed) - len(shown)
        return ", ".join([*shown, *([f"and {left} more" if shown else f"{left} keywords"] if left else [])])


_is_given_up: ContextVar[Callable[[], bool]] = ContextVar("is_given_up", default=lambda: False)


@contextmanager
def until(is_given_up: Callable[[], bool]) -> Iterator[None]:
    """Rewrite schemas until this function, which is asked again and again, says to give up."""
    token = _is_given_up.set(is_given_up)
    try:
        yield
    finally:
        _is_given_up.reset(token)


def rewrite(schema: Any) -> Rewritten:
    """Return the schema in the forms that grammars enforce. Results for recent schemas are kept.

    Raises SchemaError for what is no schema, what nothing satisfies, and what is too large.
    """
    return _rewritten(as_text(schema), most_properties())


def as_text(schema: Any) -> bytes:
    """Return a schema as JSON. Raises SchemaError if it is nested too deeply."""
    try:
        return orjson.dumps(schema)
    except TypeError as error:
        raise SchemaError("", f"cannot be written as JSON: {error}") from error


def is_kept(schema: Any) -> bool:
    """Return whether the result for this schema is kept, so that `rewrite` returns it at once.

    Raises SchemaError if the schema is nested too deeply.
    """
    return _key(as_text(schema), most_properties()) in _kept


def _key(text: bytes, most: int) -> tuple[bytes, int]:
    return sha256(text).digest(), most


# A result that is larger than all that may be kept is kept alone: whoever had it made comes back for it at once.
_kept: LRUCache[tuple[bytes, int], Rewritten] = LRUCache(
    _MOST_KEPT, getsizeof=lambda rewritten: min(rewritten.memory, _MOST_KEPT)
)


@cached(_kept, key=_key, lock=Lock())
def _rewritten(text: bytes, most: int) -> Rewritten:
    if len(text) > _MOST_BYTES:
        raise SchemaError("", f"it is too large: it has more than {_MOST_BYTES} bytes")
    rewriter = _Rewriter()
    try:
        form = rewriter.form([root_of(orjson.loads(text))])
        whole = finite.without_endless(form, rewriter.definitions) if form is not None else None
    except RecursionError as error:
        raise SchemaError("", "its references are nested too deeply") from error
    if whole is None:
        raise SchemaError(rewriter.conflict, "nothing satisfies it")
    text_of_form = orjson.dumps(whole)
    if len(text_of_form) > _MOST_BYTES:
        raise SchemaError("", f"it is too large: its alternatives, written out, have more than {_MOST_BYTES} bytes")
    check_cost(whole, most)
    return Rewritten(text_of_form, tuple(rewriter.relaxed))


def check_cost(form: Any, most: int | None = None) -> None:
    """Raise SchemaError for JSON with schemas whose grammars would keep the engine busy for seconds.

    `most` is the maximum number of properties, by default that of this process.
    """
    most = most_properties() if most is None else most
    properties = values = 0
    waiting: list[Any] = [form]
    while waiting:
        part = waiting.pop()
        if isinstance(part, list):
            waiting += part
        if not isinstance(part, dict):
            continue
        own, required, enum = part.get("properties"), part.get("required"), part.get("enum")
        if isinstance(own, dict):
            properties += len(own)
            if len(own) - (len(required) if isinstance(required, list) else 0) > most // 2:
                raise SchemaError("", f"it is too large: an object has more than {most // 2} optional properties")
        values += len(enum) if isinstance(enum, list) else 0
        if isinstance(part.get("pattern"), str):
            check_pattern_cost(part["pattern"])
        waiting += [value for name, value in part.items() if name not in ("enum", "const")]
    if properties > most:
        raise SchemaError("", f"it is too large: it has more than {most} properties")
    if values > 2 * most:
        raise SchemaError("", f"it is too large: it lists more than {2 * most} values")


@dataclass(slots=True)
class _Level:
    """The schemas that hold for one value, and the choices among further ones."""

    base: list[Place] = field(default_factory=list)
    negated: list[Place] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)
    seen: set[int] = field(default_factory=set)
    choosing: frozenset[int] = frozenset()
    """Schemas of which an option is being expanded. Such a schema inside its own option would never end."""

    def copy(self) -> _Level:
        return _Level([*self.base], [*self.negated], [*self.choices], {*self.seen}, self.choosing)


class _Rewriter:
    """Rewrites one document; takes the notes of the modules for types."""

    def __init__(self) -> None:
        self.definitions: dict[str, Form] = {}
        self.relaxed: dict[str, None] = {}
        self.conflict = ""
        self._depth = 0
        self._open: dict[frozenset[int], int] = {}
        self._done: dict[frozenset[int], Form | None] = {}
        self._names: dict[frozenset[int], str] = {}
        self._kept: list[Place] = []
        self._forms = 0
        self._is_given_up = _is_given_up.get()

    def relax(self, place: Place, keyword: str) -> None:
        """List a keyword as not enforced."""
        self.relaxed[f"{place.pointer}/{keyword}"] = None

    def never(self, place: Place, keyword: str) -> None:
        """Record that this keyword leaves no value; the error names the first."""
        self.conflict = self.conflict or f"{place.pointer}/{keyword}" if keyword else place.pointer

    def child(self, places: Sequence[Place]) -> Form | None:
        """Return the form for entries of all these schemas, None if there is no such entry."""
        self._depth += 1
        try:
            return self.form(places)
        finally:
            self._depth -= 1

    def form(self, places: Sequence[Place]) -> Form | None:
        """Return the form for values of all these schemas, None if there is no such value."""
        stated = places
        places = [self._direct(place) for place in places]
        key = frozenset(id(place.schema) for place in places if place.schema is not True and place.schema != {})
        if not key:
            return {}
        if key in self._done:
            return self._shared(key)
        if key in self._open:
            # Reached without an array or object between, it would contain nothing but itself.
            return self._reference(key) if self._open[key] < self._depth else None
        self._kept += places  # an identity is good as long as its object lives
        self._forms += 1
        if self._depth > _MOST_LEVELS:
            raise SchemaError("", f"its references are nested more than {_MOST_LEVELS} levels deep")
        if self._forms > _MOST_FORMS:
            raise SchemaError("", f"it is too large: it has more than {_MOST_FORMS} different parts")
        if self._is_given_up():
            raise SchemaError("", "it is too large: its preparation takes too long")
        self._open[key] = self._depth
        level = _Level()
        form = self._alternatives(level, _MOST_ALTERNATIVES) if self._expand_all(level, places) else None
        del self._open[key]
        self._done[key] = form
        if key in self._names:
            self.definitions[self._names[key]] = {"enum": []} if form is None else form
            return None if form is None else self._reference(key)
        is_definition = len(places) == 1 and places[0] is not stated[0]
        if self._depth and (is_definition or self._depth % _LEVELS_IN_ONE == 0):
            return self._shared(key)
        return form

    def _direct(self, place: Place) -> Place:
        """Follow a reference without siblings, so that all that refer to a schema share its form."""
        for _ in range(32):
            schema = place.schema
            if not isinstance(schema, dict) or "$ref" not in schema or schema.keys() & (_KEYWORDS | _APPLYING):
                break
            target = place.target(schema["$ref"])
            if target is None:
                break
            place = target
        return place

    def _reference(self, key: frozenset[int]) -> Form:
        name = self._names.setdefault(key, f"d{len(self._names)}")
        return {"$ref": f"#/$defs/{name}"}

    def _shared(self, key: frozenset[int]) -> Form | None:
        """Return a form that is made, as a reference to a definition if it is large."""
        form = self._done[key]
        if form is None or not form.keys() & {"properties", "prefixItems", "items", "anyOf", "patternProperties"}:
            return form
        reference = self._reference(key)
        self.definitions[self._names[key]] = form
        return reference

    def _expand_all(self, level: _Level, places: Sequence[Place]) -> bool:
        """Add schemas to a level; return False if nothing satisfies them."""
        return all(self._expand(level, place) for place in places)

    def _expand(self, level: _Level, place: Place) -> bool:
        schema = place.schema
        if isinstance(schema, bool):
            if not schema:
                self.never(place, "")
            return schema
        if not isinstance(schema, dict):
            raise SchemaError(place.pointer, "is no schema: a schema is an object, true or false")
        if len(place.within) > _MOST_LEVELS:
            raise SchemaError(place.pointer, f"more than {_MOST_LEVELS} schemas refer to each other in a row")
        if id(schema) in level.seen:
            return id(schema) not in level.choosing
        level.seen.add(id(schema))
        self._kept.append(place)
        level.base.append(place)
        level.choices += conditions.choices(place)
        applied = [inner.applied_by(place) for inner in self._referred(place)]
        if "allOf" in schema:
            applied += [inner.applied_by(place) for inner in place.children("allOf")]
        if "not" in schema and not self._negate(level, place.child("not")):
            self.never(place, "not")
            return False
        return self._expand_all(level, applied)

    def _referred(self, place: Place) -> list[Place]:
        """Return the target of a reference; one to another document or of dynamic scope is relaxed."""
        if "$ref" in place.schema:
            target = place.target(place.schema["$ref"])
            if target is not None:
                return [target]
            self.relax(place, "$ref")
        for keyword in ("$dynamicRef", "$recursiveRef"):
            if keyword in place.schema:
                self.relax(place, keyword)
        return []

    def _negate(self, level: _Level, negated: Place) -> bool:
        """Add a negated schema; return False if nothing satisfies it."""
        options = conditions.negation(negated)
        if options is None:
            level.negated.append(negated)
        elif not options:
            return False
        elif options != [()]:
            level.choices.append(
                Choice(replace(negated, pointer=negated.pointer.removesuffix("/not")), "not", tuple(options))
            )
        return True

    def _alternatives(self, level: _Level, most: int) -> Form | None:
        """Return the form of a level: that of its schemas, with an alternative for each option of its choices."""
        if not level.choices:
            return self._plain(level)
        choice = level.choices.pop(0)
        if len(choice.options) > most and len(choice.options) > 1 and not self._is_alone(level, choice):
            self.relax(choice.owner, choice.keyword)
            return self._alternatives(level, most)
        if not choice.is_exact:
            self.relax(choice.owner, choice.keyword)
        forms = [form for form in self._options(level, choice, most) if form is not None]
        if not forms:
            self.never(choice.owner, choice.keyword)
            return None
        if choice.keyword == "oneOf" and not are_disjoint(forms, self.definitions):
            self.relax(choice.owner, "oneOf")
        return any_of(forms)

    def _options(self, level: _Level, choice: Choice, most: int) -> list[Form | None]:
        if self._is_alone(level, choice):
            return [self.form(option) for option in choice.options]
        forms = []
        for option in choice.options:
            chosen = level.copy()
            chosen.choosing = level.choosing | {id(choice.owner.schema)}
            is_possible = self._expand_all(chosen, option)
            chosen.choosing = level.choosing
            forms.append(self._alternatives(chosen, most // len(choice.options)) if is_possible else None)
        return forms

    def _is_alone(self, level: _Level, choice: Choice) -> bool:
        """Return whether only the choice holds for the value."""
        return (
            not level.choices
            and not level.negated
            and not any(place.schema.keys() & _KEYWORDS for place in level.base)
            and all(len(option) == 1 for option in choice.options)
        )

    def _plain(self, level: _Level) -> Form | None:
        """Return the form of schemas without choices."""
        places = level.base
        types = _types(places)
        types = self._without_negated_types(types, level)
        listed = self._listed(level, types)
        if listed is not None:
            if not listed:
                self.never(next((p for p in places if p.schema.keys() & {"enum", "const", "type"}), places[0]), "enum")
                return None
            return {"enum": listed}
        for place in level.negated:
            self.relax(replace(place, pointer=place.pointer.removesuffix("/not")), "not")
        if not types:
            self.never(next((place for place in places if "type" in place.schema), places[0]), "type")
            return None
        facets = {kind for kind in types if _has_facets(kind, places)}
        if types >= _ANYTHING and not facets:
            return {}
        makers: dict[str, Callable[[], Form | None]] = {
            "object": lambda: objects.obj(places, self),
            "array": lambda: arrays.array(places, self),
            "string": lambda: strings.string(places, self),
            "number": lambda: numbers.number(places, self, whole=False),
            "integer": lambda: numbers.number(places, self, whole=True),
        }
        kinds = [kind for kind in _TYPES if kind in types and not (kind == "integer" and "number" in types)]
        forms = [makers[kind]() if kind in makers else {"type": kind} for kind in kinds]
        found = [form for form in forms if form is not None]
        return any_of(found) if found else None

    def _listed(self, level: _Level, types: frozenset[str]) -> list[Any] | None:
        """Return the values of an enumeration that everything else admits; None if there is no enumeration."""
        listed: list[Any] | None = None
        owner: Place | None = None
        for place in level.base:
            if "enum" in place.schema and not isinstance(place.schema["enum"], list):
                raise SchemaError(f"{place.pointer}/enum", "must be a list")
            if listed is None and "const" in place.schema:
                listed, owner = [place.schema["const"]], place
            elif listed is None and "enum" in place.schema:
                listed, owner = place.schema["enum"], place
        if listed is None and level.negated and types and types <= {"boolean", "null"}:
            listed, owner = [True, False, None], level.negated[0]
            listed = [value for value in listed if ("null" if value is None else "boolean") in types]
        if listed is None or owner is None:
            return None
        kept, is_sure = values.admitted(listed, level.base, level.negated)
        if not is_sure or any(_is_inexact(value) for value in kept):
            self.relax(owner, "const" if "const" in owner.schema else "enum")
        return kept

    def _without_negated_types(self, types: frozenset[str], level: _Level) -> frozenset[str]:
        """Remove the types that are negated as a whole."""
        for place in [*level.negated]:
            if place.schema.keys() <= {"type", "title", "description"}:
                negated = _stated_types(place)
                types = types - negated - ({"integer"} if "number" in negated else frozenset())
                if "integer" not in negated or "number" not in types:
                    level.negated.remove(place)
        return types


_APPLYING = frozenset({"allOf", "anyOf", "oneOf", "if", "$dynamicRef", "$recursiveRef"})


def any_of(forms: Sequence[Form]) -> Form:
    """Return the form for values of any of these forms."""
    flat: dict[str, Form] = {}
    for form in forms:
        if not form:
            return {}
        for part in form["anyOf"] if form.keys() == {"anyOf"} else (form,):
            flat.setdefault(json.dumps(part, sort_keys=True), part)
    parts = list(flat.values())
    return parts[0] if len(parts) == 1 else {"anyOf": parts}


def _types(places: Sequence[Place]) -> frozenset[str]:
    """Return the types that all schemas allow; without any `type`, those whose keywords they have."""
    types = _ANYTHING
    for place in places:
        if "type" in place.schema:
            stated = _stated_types(place)
            whole = {"integer"} if "integer" in stated and "number" in types and "number" not in stated else set()
            kept = {"integer"} if "integer" in types and "number" in stated else set()
            types = frozenset((types & stated) | whole | kept)
    if any(place.schema.keys() & {"type", "enum", "const"} for place in places):
        return types
    meant = {kind for kind in _FAMILIES if _has_facets(kind, places)}
    return frozenset(meant) or types


def _stated_types(place: Place) -> frozenset[str]:
    stated = place.schema["type"]
    listed = stated if isinstance(stated, list) else [stated]
    for kind in listed:
        if not isinstance(kind, str) or kind not in _TYPES:
            known = ", ".join(_TYPES)
            raise SchemaError(f"{place.pointer}/type", f"must be one of {known}, or a list of them; it is {kind!r}")
    return frozenset(listed)


def _has_facets(kind: str, places: Sequence[Place]) -> bool:
    family = _FAMILIES.get("number" if kind == "integer" else kind, frozenset())
    return any(place.schema.keys() & family for place in places)


def _is_inexact(value: Any) -> bool:
    """Return whether a value has a number that grammars write in another way than JSON libraries read it."""
    if isinstance(value, bool):
        return False
    if isinstance(value, int):
        return abs(value) > 2**53
    if isinstance(value, list | dict):
        return any(map(_is_inexact, value.values() if isinstance(value, dict) else value))
    return False
