"""JSON Schemas in the forms that grammars enforce."""

from __future__ import annotations

from typing import Any

import pytest

from vllama import schema_size
from vllama.errors import SchemaError
from vllama.schemas import rewrite, until

STRING, INTEGER = {"type": "string"}, {"type": "integer"}


def closed(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    """The form of an object with these properties and no others."""
    form: dict[str, Any] = {"type": "object", "properties": properties}
    if required:
        form["required"] = list(required)
    return {**form, "additionalProperties": False}


def either(*forms: Any) -> dict[str, Any]:
    return {"anyOf": list(forms)}


ENFORCED: dict[str, tuple[Any, Any]] = {
    "no keyword means any value": ({}, {}),
    "properties without a type mean an object": ({"properties": {"a": STRING}}, closed({"a": STRING})),
    "a list of types is a choice": ({"type": ["string", "null"]}, either(STRING, {"type": "null"})),
    "an open object stays open": (
        {"type": "object", "properties": {"a": STRING}, "additionalProperties": True},
        {"type": "object", "properties": {"a": STRING}, "additionalProperties": True},
    ),
    "an object without properties has any": ({"type": "object"}, {"type": "object"}),
    "a required name need not be listed": ({"type": "object", "required": ["a"]}, closed({"a": {}}, "a")),
    "a tuple of draft 7 is complete": (
        {"type": "array", "items": [STRING, INTEGER]},
        {"type": "array", "prefixItems": [STRING, INTEGER], "items": False, "minItems": 2},
    ),
    "a tuple of 2020-12 is the same": (
        {"type": "array", "prefixItems": [STRING, INTEGER]},
        {"type": "array", "prefixItems": [STRING, INTEGER], "items": False, "minItems": 2},
    ),
    "a tuple may say what follows it": (
        {"type": "array", "items": [STRING], "additionalItems": INTEGER, "minItems": 1},
        {"type": "array", "prefixItems": [STRING], "items": INTEGER, "minItems": 1},
    ),
    "an object that must have more properties is open": (
        {"type": "object", "properties": {"a": STRING}, "minProperties": 2},
        {"type": "object", "properties": {"a": STRING}, "additionalProperties": True, "minProperties": 2},
    ),
    "a tuple that must be longer is open": (
        {"type": "array", "prefixItems": [STRING], "minItems": 2},
        {"type": "array", "prefixItems": [STRING], "items": {}, "minItems": 2},
    ),
    "an impossible item ends an array": (
        {"type": "array", "prefixItems": [STRING, False]},
        {"type": "array", "prefixItems": [STRING], "items": False, "minItems": 1},
    ),
    "uniqueItems false says nothing": ({"type": "array", "uniqueItems": False}, {"type": "array"}),
    "one item is always unique": (
        {"type": "array", "uniqueItems": True, "maxItems": 1},
        {"type": "array", "items": {}, "maxItems": 1},
    ),
    "minContains 0 asks for nothing": (
        {"type": "array", "contains": STRING, "minContains": 0},
        {"type": "array"},
    ),
    "bounds of draft 4 are exclusive by a boolean": (
        {"type": "number", "minimum": 0, "exclusiveMinimum": True},
        {"type": "number", "exclusiveMinimum": 0},
    ),
    "bounds of integers become whole": (
        {"type": "integer", "exclusiveMinimum": 0, "maximum": 9.5},
        {"type": "integer", "minimum": 1, "maximum": 9},
    ),
    "few multiples are listed": (
        {"type": "integer", "multipleOf": 5, "minimum": 1, "maximum": 12},
        {"enum": [5, 10]},
    ),
    "a multiple of 1 is an integer": ({"type": "number", "multipleOf": 1}, {"type": "integer"}),
    "allOf is merged": (
        {"allOf": [{"type": "object", "properties": {"a": STRING}}, {"properties": {"b": INTEGER}, "required": ["b"]}]},
        closed({"a": STRING, "b": INTEGER}, "b"),
    ),
    "a reference and its siblings are merged": (
        {"$ref": "#/$defs/x", "maxLength": 3, "$defs": {"x": {"type": "string", "minLength": 1}}},
        {"type": "string", "minLength": 1, "maxLength": 3},
    ),
    "anyOf and its siblings are merged": (
        {
            "type": "object",
            "properties": {"a": STRING, "b": STRING},
            "anyOf": [{"required": ["a"]}, {"required": ["b"]}],
        },
        either(closed({"a": STRING, "b": STRING}, "a"), closed({"a": STRING, "b": STRING}, "b")),
    ),
    "oneOf of different types is a choice": ({"oneOf": [STRING, INTEGER]}, either(STRING, INTEGER)),
    "oneOf with a discriminator is a choice": (
        {"oneOf": [closed({"k": {"const": 1}}, "k"), closed({"k": {"const": 2}}, "k")]},
        either(closed({"k": {"enum": [1]}}, "k"), closed({"k": {"enum": [2]}}, "k")),
    ),
    "other keywords filter an enumeration": (
        {"type": "string", "enum": ["a", "bcd", 1], "maxLength": 1, "not": {"const": "x"}},
        {"enum": ["a"]},
    ),
    "an enumeration may hold objects": ({"enum": [{"a": 1}, [1]]}, {"enum": [{"a": 1}, [1]]}),
    "a condition becomes alternatives": (
        {
            "type": "object",
            "properties": {"k": {"enum": ["a", "b"]}, "x": INTEGER},
            "required": ["k"],
            "if": {"properties": {"k": {"const": "a"}}},
            "then": {"required": ["x"]},
        },
        either(
            closed({"k": {"enum": ["a"]}, "x": INTEGER}, "k", "x"), closed({"k": {"enum": ["b"]}, "x": INTEGER}, "k")
        ),
    ),
    "a dependency becomes alternatives": (
        {"type": "object", "properties": {"a": STRING, "b": STRING}, "dependentRequired": {"a": ["b"]}},
        either(closed({"a": STRING, "b": STRING}, "a", "b"), closed({"b": STRING})),
    ),
    "a negated type is another type": (
        {"type": ["string", "null"], "not": {"type": "null"}},
        STRING,
    ),
    "names from a list are properties": (
        {"type": "object", "propertyNames": {"enum": ["a"]}, "additionalProperties": INTEGER},
        closed({"a": INTEGER}),
    ),
    "names with a pattern have a grammar": (
        {"type": "object", "patternProperties": {"^x": INTEGER}, "additionalProperties": False},
        {
            "type": "object",
            "patternProperties": {'^x[^"\\\\\\x00-\\x1f\\x7f]*$': INTEGER},
            "additionalProperties": False,
        },
    ),
    "unevaluatedProperties sees what allOf lists": (
        {"type": "object", "allOf": [{"properties": {"a": STRING}}], "unevaluatedProperties": False},
        closed({"a": STRING}),
    ),
    "a recursive schema keeps its definition": (
        {"$ref": "#/$defs/n", "$defs": {"n": {"type": "object", "properties": {"next": {"$ref": "#/$defs/n"}}}}},
        {"$ref": "#/$defs/d0", "$defs": {"d0": closed({"next": {"$ref": "#/$defs/d0"}})}},
    ),
    "an alternative that never ends is left out": (
        {"anyOf": [{"type": "object", "properties": {"a": {"$ref": "#/anyOf/0"}}, "required": ["a"]}, STRING]},
        STRING,
    ),
    "an annotation asks for nothing": (
        {"type": "string", "contentEncoding": "base64", "title": "t", "default": "x", "nullable": True, "example": 1},
        STRING,
    ),
    "a format of numbers is an annotation": ({"type": "integer", "format": "int64"}, INTEGER),
    "a draft 3 required in a property says nothing": (
        {"type": "object", "properties": {"a": {"type": "string", "required": True}}},
        closed({"a": STRING}),
    ),
}


@pytest.mark.parametrize(("schema", "form"), ENFORCED.values(), ids=ENFORCED.keys())
def test_a_schema_has_an_enforced_form(schema: Any, form: Any) -> None:
    rewritten = rewrite(schema)
    assert rewritten.schema == form
    assert rewritten.relaxed == ()


RELAXED: dict[str, tuple[Any, Any]] = {
    "/uniqueItems": ({"type": "array", "items": STRING, "uniqueItems": True}, {"type": "array", "items": STRING}),
    "/contains": ({"type": "array", "contains": STRING}, {"type": "array"}),
    "/format": ({"type": "string", "format": "int64"}, STRING),
    "/pattern": ({"type": "string", "pattern": "^(?=a)b$"}, STRING),
    "/multipleOf": ({"type": "integer", "multipleOf": 7}, INTEGER),
    "/maximum": ({"type": "integer", "maximum": 2**63 - 1}, INTEGER),
    "/maxLength": (
        {"type": "string", "pattern": "^(ab)+$", "maxLength": 4},
        {"type": "string", "pattern": "^(ab)+$"},
    ),
    "/oneOf": ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, either(INTEGER, {"type": "number"})),
    "/not": ({"type": "string", "not": {"maxLength": 3}}, STRING),
    "/if": (
        {"type": "string", "if": {"minLength": 3}, "then": {"maxLength": 5}},
        either({"type": "string", "minLength": 3, "maxLength": 5}, STRING),
    ),
    "/$ref": ({"$ref": "https://example.com/other.json"}, {}),
    "/$dynamicRef": ({"$dynamicRef": "#node"}, {}),
    "/patternProperties": (
        {"type": "object", "properties": {"a": STRING}, "patternProperties": {"^x": INTEGER}},
        {"type": "object", "properties": {"a": STRING}, "additionalProperties": INTEGER},
    ),
    "/propertyNames": (
        {
            "type": "object",
            "properties": {"a": STRING},
            "additionalProperties": INTEGER,
            "propertyNames": {"maxLength": 3},
        },
        {"type": "object", "properties": {"a": STRING}, "additionalProperties": INTEGER},
    ),
}


@pytest.mark.parametrize(("pointer", "schemas"), RELAXED.items(), ids=RELAXED.keys())
def test_what_no_grammar_expresses_is_left_out_and_listed(pointer: str, schemas: tuple[Any, Any]) -> None:
    rewritten = rewrite(schemas[0])
    assert rewritten.schema == schemas[1]
    assert rewritten.relaxed == (pointer,)


def test_closed_objects_of_an_intersection_share_their_properties() -> None:
    rewritten = rewrite({"allOf": [closed({"a": STRING}, "a"), closed({"b": INTEGER}, "b")]})

    assert rewritten.schema == closed({"a": STRING, "b": INTEGER}, "a", "b")
    assert rewritten.relaxed == ("/allOf/0/additionalProperties", "/allOf/1/additionalProperties")


REFUSED: dict[str, tuple[Any, str]] = {
    "false": ({"properties": {"a": False}, "required": ["a"]}, " at /properties/a: nothing satisfies it"),
    "an empty enumeration": ({"enum": []}, " at /enum: nothing satisfies it"),
    "a negation of everything": ({"not": {}}, " at /not: nothing satisfies it"),
    "types that exclude each other": (
        {"allOf": [{"type": "string"}, {"type": "null"}]},
        " at /allOf/0/type: nothing satisfies it",
    ),
    "too many items": ({"type": "array", "minItems": 2, "maxItems": 1}, " at /minItems: nothing satisfies it"),
    "an object that contains itself without end": (
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
        ": nothing satisfies it",
    ),
    "an unknown type": (
        {"items": {"type": "text"}},
        (
            " at /items/type: must be one of object, array, string, number, integer, boolean, null, or a list of"
            " them; it is 'text'"
        ),
    ),
    "a reference to nothing": ({"$ref": "#/$defs/x"}, " at /$ref: refers to nothing: #/$defs/x"),
    "a broken pattern": (
        {"type": "string", "pattern": "^(a$"},
        " at /pattern: is no regular expression: the group at character 1 is not closed: ^(a$",
    ),
    "a property that is no schema": (
        {"properties": {"a": 1}},
        " at /properties/a: is no schema: a schema is an object, true or false",
    ),
    "properties that are no object": ({"properties": []}, " at /properties: must be an object"),
    "an empty anyOf": ({"anyOf": []}, " at /anyOf: must be a list of schemas that is not empty"),
    "a negative length": (
        {"type": "string", "minLength": -1},
        " at /minLength: must be a whole number that is not negative",
    ),
}


@pytest.mark.parametrize(("schema", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_only_what_nothing_satisfies_and_what_is_no_schema_is_refused(schema: Any, message: str) -> None:
    with pytest.raises(SchemaError) as refused:
        rewrite(schema)
    assert str(refused.value) == f"invalid JSON schema{message}"


def chain(length: int, link: Any) -> dict[str, Any]:
    """A schema of definitions each of which refers to the next."""
    definitions = {f"a{index}": link({"$ref": f"#/$defs/a{index + 1}"}) for index in range(length)}
    return {"$ref": "#/$defs/a0", "$defs": {**definitions, f"a{length}": STRING}}


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = STRING
    for _ in range(levels):
        schema = {"items": schema}
    return schema


TOO_LARGE = {
    "nesting": nested(70),
    "values": {"enum": list(range(60_000))},
    "references in a row": chain(2_000, lambda next_one: {"allOf": [next_one]}),
    "references to ever deeper objects": chain(2_000, lambda next_one: {"properties": {"x": next_one}}),
    "names and patterns": {
        "type": "object",
        "properties": {f"p{index}": STRING for index in range(200)},
        "patternProperties": {f"^p{index}$": STRING for index in range(200)},
    },
}


@pytest.mark.parametrize("schema", TOO_LARGE.values(), ids=TOO_LARGE.keys())
def test_a_schema_that_costs_too_much_is_refused(schema: Any) -> None:
    with pytest.raises(SchemaError):
        rewrite(schema)


def test_shared_definitions_are_written_once() -> None:
    rewritten = rewrite(chain(40, lambda next_one: {"type": "object", "properties": {"l": next_one, "r": next_one}}))

    assert len(str(rewritten.schema)) < 20_000


def test_alternatives_that_multiply_are_relaxed() -> None:
    pairs = [{"anyOf": [{"required": [f"a{index}"]}, {"required": [f"b{index}"]}]} for index in range(20)]
    rewritten = rewrite({"type": "object", "allOf": pairs})

    assert rewritten.relaxed
    assert len(rewritten.schema["anyOf"]) <= 64


def test_an_enumeration_with_too_many_checks_is_kept_and_told() -> None:
    few, many = ({"enum": list(range(count)), "allOf": [{"not": {"enum": [0]}}] * 300} for count in (10, 300))

    assert (rewrite(few).schema, rewrite(few).relaxed) == ({"enum": list(range(1, 10))}, ())
    assert (rewrite(many).schema, rewrite(many).relaxed) == ({"enum": list(range(300))}, ("/enum",))


def test_a_pattern_of_too_many_categories_is_relaxed() -> None:
    assert rewrite({"type": "string", "pattern": r"^[\p{L}]*$"}).relaxed == ()
    assert rewrite({"type": "string", "pattern": "^[" + r"\p{L}" * 100 + "]*$"}).relaxed == ("/pattern",)


def test_the_header_is_short_and_ascii() -> None:
    many = {f"ä{index}": {"type": "string", "format": "x"} for index in range(500)}
    header = rewrite({"type": "object", "properties": many}).header()

    assert header.isascii()
    assert header.startswith("/properties/%C3%A40/format, /properties/%C3%A41/format, ")
    assert header.endswith(" more")
    assert len(header) < 1_500


def test_the_schema_itself_is_not_changed() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "format": "x"}}}
    rewrite(schema)

    assert schema == {"type": "object", "properties": {"a": {"type": "string", "format": "x"}}}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {f"p{number}": {} for number in range(5000)}},
        {"type": "array", "items": {"type": "object", "properties": {f"p{number}": {} for number in range(1001)}}},
        {"enum": [str(number) for number in range(4001)]},
        {"properties": {str(n): {"properties": {f"{n}.{m}": {"type": "null"} for m in range(50)}} for n in range(50)}},
    ],
    ids=["optional properties", "optional properties inside", "values", "properties of several objects"],
)
def test_a_schema_that_would_keep_the_engine_busy_is_refused(schema: Any) -> None:
    with pytest.raises(SchemaError, match="it is too large"):
        rewrite(schema)


def test_the_maximum_size_of_schemas_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema_size, "_most_properties", 2_000)  # put back after the test
    names = [f"name{number}" for number in range(10)]
    required = {"type": "object", "properties": dict.fromkeys(names, STRING), "required": names}
    rewrite(required)
    schema_size.set_most_properties(9)
    for schema, what in (
        (required, "more than 9 properties"),
        ({"type": "object", "properties": dict.fromkeys(names[:5], STRING)}, "more than 4 optional properties"),
        ({"enum": [*names, *range(9)]}, "more than 18 values"),
    ):
        with pytest.raises(SchemaError, match=what):
            rewrite(schema)


def test_schemas_as_large_as_those_of_apis_are_served() -> None:
    names = [f"p{number}" for number in range(1000)]
    rewrite({"type": "object", "properties": dict.fromkeys(names, STRING), "required": names})
    rewrite({"type": "object", "properties": dict.fromkeys(names[:500], STRING)})
    rewrite({"enum": names})


@pytest.mark.parametrize("pattern", ["^(([a-z]{0,30}){0,30}){0,30}$", "^(a{1,1000}){1,1000}$", "(([a-z]{9}){9}){9}"])
def test_repetitions_that_multiply_are_relaxed(pattern: str) -> None:
    assert rewrite({"type": "string", "pattern": pattern}).relaxed == ("/pattern",)


@pytest.mark.parametrize(
    "pattern", ["^[a-z]{1,1000}$", "^([0-9]{1,3}\\.){3}[0-9]{1,3}$", "^(([a-z]+)-)*$", "^(ab){200}$"]
)
def test_repetitions_of_ordinary_patterns_are_enforced(pattern: str) -> None:
    assert rewrite({"type": "string", "pattern": pattern}).relaxed == ()


def test_rewriting_is_given_up_when_nobody_waits_for_it() -> None:
    asked = 0

    def is_given_up() -> bool:
        nonlocal asked
        asked += 1
        return asked > 3

    with until(is_given_up), pytest.raises(SchemaError, match="takes too long"):
        rewrite({"type": "object", "properties": {f"given up {number}": STRING for number in range(9)}})
