"""JSON bodies: values that a schema allows, and changes that it does not, as hypothesis strategies."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st
from odd_json import Raw, Twice, nested_values, scalar_values

from fuzz.routes import Route

_DEPTH = 4
"""Levels below which only required fields are drawn."""

PICTURE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
_USER = {"role": "user", "content": "hi"}
_TEXT = {"type": "text", "text": "hi"}
_TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {}}}}}
_SCHEMA = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
_NAMED = {"name": "s", "schema": _SCHEMA}

HINTS: Mapping[str, tuple[Any, ...]] = {
    "messages": ([_USER], [{"role": "system", "content": "s"}, _USER], [{"role": "user", "content": [_TEXT]}]),
    "prompt": ("hi", "", "a b c"), "input": ("hi", ["a", "b"]), "query": ("q",), "documents": (["a", "b"],),
    "text_1": ("a",), "text_2": ("b", ["b", "c"]), "queries": ("a",), "items": (["b"],), "tokens": ([1, 2, 3],),
    "role": ("user", "assistant", "system", "tool"), "content": ("hi",), "text": ("a",),
    "num_predict": (1, 4), "max_tokens": (1, 4), "max_completion_tokens": (1, 4), "max_output_tokens": (1, 20),
    "n": (1, 2), "best_of": (1,), "stream": (True, False), "images": ([PICTURE], []),
    "keep_alive": ("5m", 300, -1), "format": ("json", _SCHEMA, ""), "think": (False, True, "low"),
    "response_format": ({"type": "json_object"}, {"type": "json_schema", "json_schema": _NAMED}, {"type": "text"}),
    "tools": ([], [_TOOL]), "tool_choice": ("auto", "none"), "options": ({"num_predict": 2}, {"temperature": 0}),
    "temperature": (0, 0.8), "top_p": (0.9, 1), "seed": (1,), "stop": (["x"], "x"), "logprobs": (True, False),
    "top_logprobs": (0, 2), "suffix": ("x",), "system": ("s",), "raw": (True,), "context": ([1, 2],),
    "template": ("{{ .Prompt }}", "{{ if .System }}{{ .System }}{{ end }}{{ .Prompt }}"), "modelfile": ("FROM x",),
    "dimensions": (2,), "truncate": (True, False), "encoding_format": ("float", "base64"), "insecure": (False,),
    "structured_outputs": ({"choice": ["a", "b"]}, {"regex": "[ab]+"}, {"json": _SCHEMA}), "stop_token_ids": ([2],),
    "logit_bias": ({"5": 1},), "license": ("x",), "quantize": ("q4_K_M",), "precision": ("bf16",), "files": ({},),
    "parameters": ({"num_ctx": 100}, {"stop": ["x"]}), "adapters": ({},), "stream_options": ({"include_usage": True},),
    "state": ("s",), "questions": ({"a": {"type": "noul", "instructions": "i"}},),
    "response_id": ("r",), "previous_response_id": (None,), "background": (False,), "priority": (0,),
}  # fmt: skip
"""Values near to what fields of these names want, on whatever route they are; all keep a request short."""

_NAMES = ("model", "name", "from", "source", "destination")
"""Fields that hold a model's name."""


_SELDOM_WRONG = (*_NAMES, "keep_alive")
"""Fields that decide how far a request comes, and whether the model is loaded for the next one."""


@dataclass(frozen=True)
class Names:
    """Names of models: those that exist, and those that routes which change models may replace and delete."""

    models: tuple[str, ...]
    victims: tuple[str, ...]

    def for_route(self, route: Route) -> st.SearchStrategy[str]:
        """A name of a model, mostly one that the route serves; seldom one that does not exist or is no name."""
        good = self.victims if route.changes_models else (*(route.models or self.models) * 3, *self.victims)
        return st.sampled_from([*good * 12, *(model.upper() for model in good), *_OTHERS])


_OTHERS = ("nope", "a/b/c/d:e", "hf.co/x/y", "../../etc/passwd", "a b", "x:y:z", ":", "/", "", "é", "a\x00", "x" * 400)


_ODD = st.sampled_from(
    [
        *(Raw(text) for text in ("1e999", "-0", "-0.0", "1" + "0" * 400, "NaN", "-Infinity", "0.1e-400", "01", "tru")),
        *(Raw(text) for text in ('"\\ud800"', '"\\udc00\\ud800"', '"\\u0000"', "'x'", "\ufeff1", "undefined", "")),
        *(Raw("[" * depth + "]" * depth) for depth in (10, 200, 1023, 5000)),
        Raw('{"a":' * 3000 + "1" + "}" * 3000),
        Raw('"' + "x" * 100_000 + '"'),
        Raw("[" + "0," * 5000 + "0]"),
        *(0, -1, 1, 2**31, 2**32, 2**53, 2**63, 2**64, -(2**63) - 1, 10**30, 1e300, 0.5, 1.0),
        *("", " ", "\n", "0", "-1", "null", "true", "5m", "a\x00b", "\u202e", "😀" * 50, "../x", "{{", "%s%n"),
        *([], {}, [[]], [None], {"": None}, [{}], [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:1"}}]),
    ]
)
SCALARS = scalar_values(_ODD)
VALUES = nested_values(SCALARS, 5)


@dataclass(frozen=True)
class Fields:
    """Draws values that a schema allows, with the fields' own hints."""

    definitions: Mapping[str, Any]
    names: st.SearchStrategy[str]

    def draw(self, draw: st.DrawFn, schema: Mapping[str, Any], depth: int = 0) -> Any:
        """Draw a value of this schema."""
        schema = self.resolved(draw, schema)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return draw(st.sampled_from(schema["enum"]))
        kind = schema.get("type")
        if isinstance(kind, list):
            kind = draw(st.sampled_from(kind))
        if kind == "object" or "properties" in schema:
            return self._object(draw, schema, depth)
        if kind == "array":
            items = schema.get("items", {}) if depth < _DEPTH else None
            number = max(draw(st.integers(0, 2)), min(schema.get("minItems", 0), 4))
            return [] if items is None else [self.draw(draw, items, depth + 1) for _ in range(number)]
        scalars = {
            "string": st.sampled_from(["hi", "a", "user", "auto", ""]),
            "integer": st.integers(0, 4),
            "number": st.sampled_from([0, 0.5, 1]),
            "boolean": st.booleans(),
            "null": st.none(),
        }
        return draw(scalars.get(kind or "", SCALARS))

    def resolved(self, draw: st.DrawFn, schema: Any) -> Mapping[str, Any]:
        """Return the schema that a reference or one of several alternatives stands for."""
        for _ in range(20):
            if not isinstance(schema, Mapping):
                return {}
            if "$ref" in schema:
                schema = self.definitions.get(schema["$ref"].rpartition("/")[2], {})
            elif alternatives := [*schema.get("anyOf", ()), *schema.get("oneOf", ())]:
                schema = draw(st.sampled_from(alternatives))
            elif "allOf" in schema:
                schema = schema["allOf"][0]
            else:
                return schema
        return {}

    def _object(self, draw: st.DrawFn, schema: Mapping[str, Any], depth: int) -> dict[str, Any]:
        properties = schema.get("properties", {})
        if not properties and isinstance(schema.get("additionalProperties"), Mapping):
            return {"a": self.draw(draw, schema["additionalProperties"], depth + 1)} if depth < _DEPTH else {}
        required = set(schema.get("required", ()))
        optional = [name for name in properties if name not in required] if depth < _DEPTH else []
        if optional:
            required |= set(draw(st.lists(st.sampled_from(optional), max_size=4)))
        return {name: self.field(draw, name, properties.get(name, {}), depth) for name in sorted(required)}

    def field(self, draw: st.DrawFn, name: str, schema: Any, depth: int = 0) -> Any:
        """Draw the value of a field: mostly what its name hints at."""
        if name in _NAMES and depth == 0:
            return draw(self.names)
        if name in HINTS and draw(st.integers(0, 11)):
            return copy.deepcopy(draw(st.sampled_from(HINTS[name])))
        return self.draw(draw, schema, depth + 1)


def paths(value: Any, depth: int = 0) -> list[tuple[Any, ...]]:
    """Return the places within a value, the value itself first."""
    found: list[tuple[Any, ...]] = [()]
    if depth < _DEPTH and isinstance(value, dict):
        found += [(key, *rest) for key, item in value.items() for rest in paths(item, depth + 1)]
    if depth < _DEPTH and isinstance(value, list):
        found += [(index, *rest) for index, item in enumerate(value[:3]) for rest in paths(item, depth + 1)]
    return found


def mutated(draw: st.DrawFn, body: dict[str, Any], known: list[str]) -> Any:
    """Return the body with one change; `known` are names of fields that the route has."""
    kind = draw(st.sampled_from(["replace"] * 4 + ["add"] * 3 + ["remove", "null", "wrap", "twice", "rename", "grow"]))
    is_any = draw(st.integers(0, 19)) == 19
    if kind == "add" or not body:
        names = [name for name in known if is_any or name not in _SELDOM_WRONG]
        name = draw(st.sampled_from(names) | st.text(max_size=6) if names else st.text(max_size=6))
        value = draw(VALUES)
        return {**body, name: Twice(body[name], value) if name in body and draw(st.booleans()) else value}
    places = paths(body)[1:]
    usual = [place for place in places if is_any or place[0] not in _SELDOM_WRONG]
    return _changed(draw, body, draw(st.sampled_from(usual or places)), kind)


def _changed(draw: st.DrawFn, value: Any, path: tuple[Any, ...], kind: str) -> Any:
    key = path[0]
    if len(path) > 1:
        changed = copy.copy(value)
        changed[key] = _changed(draw, value[key], path[1:], kind)
        return changed
    if isinstance(value, list):
        return [*value[:key], *_items(draw, value[key], kind), *value[key + 1 :]]
    rest = {name: item for name, item in value.items() if name != key}
    if kind == "remove":
        return rest
    if kind == "rename":
        return {
            **rest,
            draw(st.sampled_from([key.upper(), key.title(), key + "\x00", key + " ", "_" + key])): value[key],
        }
    if kind == "twice":
        return {**rest, key: Twice(value[key], draw(VALUES))}
    return {**rest, key: (_items(draw, value[key], kind) or [None])[0]}


def _items(draw: st.DrawFn, value: Any, kind: str) -> list[Any]:
    """Return what an item of a list becomes."""
    if kind == "remove":
        return []
    if kind == "null":
        return [None]
    if kind == "wrap":
        return [draw(st.sampled_from([[value], {"a": value}, [[value]], str(value)[:100], {"type": value}]))]
    if kind in {"grow", "twice"}:
        return [value] * draw(st.sampled_from([2, 50])) if kind == "twice" else [_grown(value)]
    return [draw(VALUES)]


def _grown(value: Any) -> Any:
    if isinstance(value, str):
        return value * 200 or "x" * 5000
    if isinstance(value, list):
        return value * 40
    return value * 1_000_003 if isinstance(value, int | float) else {str(index): value for index in range(30)}
