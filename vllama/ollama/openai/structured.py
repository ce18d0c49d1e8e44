"""Schemas in requests of `/v1`, in the forms that the engine enforces (contract §5.1, §5.5, §5.7)."""

from __future__ import annotations

from typing import Any

from vllama.ollama.formats import Header, enforced, headers_about


def enforce(body: dict[str, Any], *path: str) -> tuple[Header, ...]:
    """Replace the schema of the format at this path by what is enforced of it; return the reply headers about it.

    A format is `{"type": "json_schema", "schema": …}`, or has the schema inside `json_schema`. Raises SchemaError.
    """
    owner = body
    for name in path[:-1]:
        inner = owner.get(name)
        if not isinstance(inner, dict):
            return ()
        owner[name] = owner = {**inner}
    wanted = owner.get(path[-1])
    if not isinstance(wanted, dict) or wanted.get("type") != "json_schema":
        return ()
    nested = wanted.get("json_schema")
    schema = (nested if isinstance(nested, dict) else wanted).get("schema")
    if not isinstance(schema, dict):
        return ()
    rewritten = enforced(schema)
    replaced = {"schema": rewritten.schema}
    if isinstance(nested, dict):
        replaced = {"json_schema": {**nested, **replaced}}
    owner[path[-1]] = {**wanted, **replaced}
    return headers_about(rewritten)
