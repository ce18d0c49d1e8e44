"""The quality gate: do the replies parse, and does each field keep the schema, or have the value that was expected?

A schema file is a JSON Schema. A task file has the prompts too, and may have what their replies should say:
    {"schema": {…}, "items": [{"prompt": "…", "expect": {"city": "Paris"}}, …]}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from vllama.bench.prompts import BadWorkload


@dataclass(frozen=True, slots=True)
class Task:
    """A schema, the prompts (none: those of the workload), and what is expected of the reply to each of them."""

    name: str
    schema: dict[str, Any]
    prompts: tuple[str, ...] = ()
    expected: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def from_file(cls, path: Path) -> Task:
        """Read a schema or a task. Raises BadWorkload."""
        import jsonschema

        try:
            value = orjson.loads(path.read_bytes())
        except (OSError, orjson.JSONDecodeError) as error:
            message = f"{path}: {error}"
            raise BadWorkload(message) from error
        if not isinstance(value, dict):
            message = f"{path}: neither a JSON Schema nor a task"
            raise BadWorkload(message)
        task = _task(path, value) if "items" in value and "schema" in value else cls(path.name, value)
        try:
            jsonschema.validators.validator_for(task.schema).check_schema(task.schema)
        except jsonschema.SchemaError as error:
            message = f"{path}: not a JSON Schema: {error.message}"
            raise BadWorkload(message) from error
        return task

    def judge(self, text: str, number: int) -> tuple[bool, dict[str, bool]]:
        """Return whether a reply to prompt `number` parses and keeps the schema, and the same of each field.

        A field that an answer is expected for is valid if it has that value.
        """
        import jsonschema

        kind = jsonschema.validators.validator_for(self.schema)
        properties = self.schema.get("properties") or {}
        try:
            value = orjson.loads(text)
        except orjson.JSONDecodeError:
            return False, dict.fromkeys(properties, False)
        whole = kind(self.schema).is_valid(value)
        said = value if isinstance(value, dict) else {}
        required = set(self.schema.get("required") or ())
        expected = self.expected[number % len(self.expected)] if self.expected else {}

        def is_valid(name: str) -> bool:
            if name in expected:
                return bool(name in said and said[name] == expected[name])
            if name not in said:
                return name not in required
            return bool(kind(self.schema).evolve(schema=properties[name]).is_valid(said[name]))

        return whole, {name: is_valid(name) for name in properties}


def _task(path: Path, value: dict[str, Any]) -> Task:
    items = value["items"] if isinstance(value["items"], list) else []
    if not items or not all(isinstance(item, dict) and isinstance(item.get("prompt"), str) for item in items):
        message = f"{path}: `items` must be a list of objects with a `prompt` each"
        raise BadWorkload(message)
    if not isinstance(value["schema"], dict):
        message = f"{path}: `schema` must be a JSON Schema"
        raise BadWorkload(message)
    expected = tuple(item.get("expect") or {} for item in items)
    return Task(path.name, value["schema"], tuple(item["prompt"] for item in items), expected)
