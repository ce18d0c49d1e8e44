"""Tools that a request offers: whether JSON calls one of them with arguments that fit its parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from jsonschema import Draft202012Validator, ValidationError
from jsonschema.validators import extend
from referencing import Registry

from vllama.schemas import patterns

NAME_KEYS = ("name", "function", "tool_name", "tool")
ARGUMENT_KEYS = ("arguments", "parameters", "args")
OTHER_KEYS = ("type", "id")
"""Keys of a call in the forms that models write; `function` holds a name, or an object with name and arguments."""

_MOST_CHECKS = 20_000
"""Maximum number of keywords that are applied to the arguments of one call; references can multiply them."""

_UNCHECKED = "patternProperties"
"""Python's regular expressions can take for ever, so a tool with this keyword is not called without tags."""

_COMPOSITES = frozenset({"$ref", "allOf", "anyOf", "oneOf", "if", "dependentSchemas"})
"""Keywords that may declare further arguments."""

Call = tuple[str, dict[str, Any]]
"""Name and arguments."""


@dataclass(frozen=True, slots=True)
class OfferedTools:
    """The functions of a request, by name, each with the JSON Schema of its arguments."""

    parameters: Mapping[str, Any]

    @classmethod
    def of(cls, tools: Sequence[Any]) -> OfferedTools:
        """Take the tools of a vLLM request, of chat completions or responses; only functions are kept."""
        functions = [getattr(tool, "function", tool) for tool in tools if getattr(tool, "type", "") == "function"]
        return cls({str(function.name): getattr(function, "parameters", None) or {} for function in functions})

    def call(self, value: Any) -> Call | None:
        """Return the call that a JSON value states; None if it states none of these tools, or if arguments do not fit.

        The arguments may be an object or its JSON text, as in OpenAI's API.
        """
        stated = _stated(value)
        if stated is None:
            return None
        name, arguments = stated
        schema = self.parameters.get(name)
        return (name, arguments) if schema is not None and _fits(arguments, schema) else None


def _stated(value: Any) -> Call | None:
    """Return name and arguments of an object that has nothing else but a type and an id."""
    if not isinstance(value, dict) or value.get("type", "function") != "function":
        return None
    stated = {key: entry for key, entry in value.items() if key not in OTHER_KEYS}
    if stated.keys() == {"function"} and isinstance(stated["function"], dict):
        stated = stated["function"]
    names = [entry for key, entry in stated.items() if key in NAME_KEYS]
    arguments = [entry for key, entry in stated.items() if key in ARGUMENT_KEYS]
    if not (len(names) == len(arguments) == 1 and len(stated) == 2 and isinstance(names[0], str)):
        return None
    found = arguments[0]
    if isinstance(found, str):
        try:
            found = orjson.loads(found)
        except orjson.JSONDecodeError:
            return None
    return (names[0], found) if isinstance(found, dict) else None


def _fits(arguments: Mapping[str, Any], schema: Any) -> bool:
    """Return whether the arguments satisfy the schema, and have no names that it does not declare."""
    if not isinstance(schema, dict) or f'"{_UNCHECKED}"' in orjson.dumps(schema).decode():
        return False
    is_closed = "additionalProperties" not in schema and not schema.keys() & _COMPOSITES
    if is_closed and not arguments.keys() <= (schema.get("properties") or {}).keys():
        return False
    try:
        return bool(_bounded_validator()(schema, registry=Registry()).is_valid(arguments))
    except Exception:  # noqa: BLE001 - a schema that the library cannot read, endless references, too many checks
        return False


def _bounded_validator() -> Any:
    """Return a validator class that stops after _MOST_CHECKS checks and fetches nothing."""
    left = _MOST_CHECKS

    def counted(apply: Callable[..., Any]) -> Callable[..., Iterator[ValidationError]]:
        def check(*given: Any) -> Iterator[ValidationError]:
            nonlocal left
            left -= 1
            if left < 0:
                raise OverflowError
            yield from apply(*given) or ()

        return check

    keywords = {**Draft202012Validator.VALIDATORS, "pattern": _pattern}
    return extend(Draft202012Validator, {name: counted(apply) for name, apply in keywords.items()})


def _pattern(validator: Any, pattern: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    """Apply `pattern` in a limited number of steps; one that is not understood admits every text."""
    del validator, schema
    if isinstance(instance, str) and isinstance(pattern, str):
        try:
            if not patterns.matches(pattern, instance):
                yield ValidationError(f"{instance!r} does not match {pattern!r}")
        except ValueError:
            return
