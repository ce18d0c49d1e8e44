"""The JSON Schema of a result, made from the records that it describes.

    python -m vllama.bench.schema > vllama/bench/result.schema.json

after every change of vllama.bench.result; a test compares the two.
"""

from __future__ import annotations

import inspect
from dataclasses import MISSING, fields, is_dataclass
from importlib.resources import files
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import click
import orjson

from vllama.bench.result import SCHEMA, ExperimentResult

_PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean"}


def published() -> bytes:
    """Return the schema as it is shipped."""
    return files("vllama.bench").joinpath("result.schema.json").read_bytes()


def generated() -> bytes:
    """Return the schema of the records as they are."""
    definitions: dict[str, Any] = {}
    root = _record(ExperimentResult, definitions)
    root["properties"]["schema"] = {"const": SCHEMA}
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:vllama:bench-result:{SCHEMA}",
        "title": "The result of `vllama bench`",
        **root,
        # A reader may leave out what has a default; `schema` says what the rest is.
        "required": [*root["required"], "schema"],
        "$defs": dict(sorted(definitions.items())),
    }
    return orjson.dumps(schema, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def _record(cls: type, definitions: dict[str, Any]) -> dict[str, Any]:
    hints = get_type_hints(cls)
    required = [f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING]
    return {
        "description": inspect.cleandoc(cls.__doc__ or ""),
        "type": "object",
        "properties": {name: _of(hint, definitions) for name, hint in hints.items()},
        "required": required,
        "additionalProperties": False,
    }


def _of(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return {}
    if kind in _PLAIN:
        return {"type": _PLAIN[kind]}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in {Union, UnionType}:
        [inner] = [argument for argument in arguments if argument is not NoneType]
        return _nullable(_of(inner, definitions))
    if origin is dict:
        return {"type": "object", "additionalProperties": _of(arguments[1], definitions)}
    if origin is tuple and arguments[-1] is Ellipsis:
        return {"type": "array", "items": _of(arguments[0], definitions)}
    if origin is tuple:
        items = [_of(argument, definitions) for argument in arguments]
        return {"type": "array", "prefixItems": items, "minItems": len(items), "items": False}
    if is_dataclass(kind):
        name = kind.__name__  # type: ignore[union-attr]
        if name not in definitions:
            definitions[name] = {}  # a record may hold itself
            definitions[name] = _record(kind, definitions)  # type: ignore[arg-type]
        return {"$ref": f"#/$defs/{name}"}
    message = f"no JSON Schema is known for {kind}"
    raise TypeError(message)


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    if set(schema) == {"type"}:
        return {"type": [schema["type"], "null"]}
    if set(schema) == {"enum"}:
        return {"enum": [*schema["enum"], None]}
    return {"anyOf": [schema, {"type": "null"}]}


if __name__ == "__main__":
    click.echo(generated(), nl=False)
