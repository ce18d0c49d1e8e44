"""The OpenAPI document, made from the operations and the schemas of their records."""

from __future__ import annotations

import re
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import orjson
from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from vllama import OLLAMA_VERSION, __version__
from vllama.gateway.openapi import chat, embedding, generate, inference, models, server, store, vllm
from vllama.gateway.openapi.errors import Messages
from vllama.gateway.openapi.operation import BYTES, JSON, Content, Operation, Parameter, Reply
from vllama.gateway.openapi.records import Error, Record
from vllama.ollama.status import NDJSON

OPERATIONS: tuple[Operation, ...] = (
    *generate.OPERATIONS,
    *chat.OPERATIONS,
    *embedding.OPERATIONS,
    *models.OPERATIONS,
    *store.OPERATIONS,
    *server.OPERATIONS,
    *vllm.OPERATIONS,
)
"""All operations, in the order in which they are shown."""

_TAGS = {
    inference.TAG: "Answers and vectors of models, which are loaded on demand.",
    models.TAG: "Stored and loaded models.",
    store.TAG: "Pull, create, copy and delete models.",
    server.TAG: "The server itself.",
    server.CLOUD: "Ollama's cloud is not used: nothing leaves this server.",
    vllm.TAG: "APIs whose requests are forwarded to vLLM.",
}

_DESCRIPTION = f"""Ollama's API (version {OLLAMA_VERSION}) on vLLM's engine.

- Request bodies are JSON; a `Content-Type` is not required. Unknown fields are ignored, `null` counts as absent.
- Errors of `/api` are `{{"error": "…"}}`. In a stream that has begun, such an object is the last line.
- Streams are NDJSON (`{NDJSON}`): one object per line. Their schema here is that of a line.
- A request with a foreign `Host` or `Origin` header gets 403 with an empty body. Unknown paths get 404, and known
  paths with other methods 405, both as plain text.
"""


class _Schemas(GenerateJsonSchema):
    """Schemas without titles of fields, which only repeat their names, and without defaults that are null."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        del schema
        return False

    def default_schema(self, schema: Any) -> dict[str, Any]:
        built = super().default_schema(schema)
        if built.get("default", ...) is None:
            del built["default"]
        return built


def document() -> dict[str, Any]:
    """Build the OpenAPI document."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        path = paths.setdefault(re.sub(r":path\}", "}", operation.path), {})
        path[operation.method.lower()] = _operation(operation, operation.method)
        if operation.has_head:
            path["head"] = _operation(operation, "HEAD")
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "vllama",
            "version": __version__,
            "description": _DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": ".", "description": "This server"}],
        "tags": [{"name": name, "description": text} for name, text in _TAGS.items()],
        "paths": paths,
        "components": {"schemas": _schemas()},
    }


def _schemas() -> dict[str, Any]:
    records = sorted(
        {content.record for content in _contents() if content.record} | {Error}, key=lambda one: one.__name__
    )
    _, definitions = models_json_schema(
        [(record, "validation") for record in records],
        ref_template="#/components/schemas/{model}",
        schema_generator=_Schemas,
    )
    schemas: dict[str, Any] = definitions["$defs"]
    return schemas


def _contents() -> Iterator[Content]:
    for operation in OPERATIONS:
        if operation.request:
            yield operation.request
        for reply in operation.replies.values():
            yield from reply.contents


def _operation(operation: Operation, method: str) -> dict[str, Any]:
    replies = {str(status): _reply(reply, method) for status, reply in operation.replies.items()}
    replies |= {str(status): _error(status, messages, method) for status, messages in operation.errors.items()}
    built: dict[str, Any] = {
        "operationId": _identifier(method, operation.path),
        "tags": [operation.tag],
        "summary": operation.summary + (": only the headers" if operation.has_head and method == "HEAD" else ""),
        "description": operation.description,
        "parameters": [_parameter(parameter) for parameter in operation.parameters],
        "responses": dict(sorted(replies.items())),
    }
    if operation.request:
        built["requestBody"] = {"required": True, "content": _content(operation.request)}
    return {key: value for key, value in built.items() if value}


def _identifier(method: str, path: str) -> str:
    return "_".join([method.lower(), *re.findall(r"\w+", path.replace(":path", ""))])


def _reply(reply: Reply, method: str) -> dict[str, Any]:
    if method == "HEAD" or not reply.contents:
        return {"description": reply.description}
    content = {kind: body for each in reply.contents for kind, body in _content(each).items()}
    return {"description": reply.description, "content": content}


def _error(status: int, messages: Messages, method: str) -> dict[str, Any]:
    described = {"description": HTTPStatus(status).phrase}
    if method == "HEAD":
        return described
    texts = (messages,) if isinstance(messages, str) else messages
    examples = {f"{number}": {"value": {"error": text}} for number, text in enumerate(texts, 1)}
    return described | {"content": {JSON: {"schema": _reference(Error), "examples": examples}}}


def _content(content: Content) -> dict[str, Any]:
    body: dict[str, Any] = {"schema": _schema(content)}
    if content.examples:
        body["examples"] = {
            title: {"summary": title, "value": _lines(value) if content.media_type == NDJSON else value}
            for title, value in content.examples.items()
        }
    return {content.media_type: body}


def _schema(content: Content) -> dict[str, Any]:
    if content.media_type == NDJSON and content.record:
        return {"anyOf": [_reference(content.record), _reference(Error)]}
    if content.record:
        return _reference(content.record)
    if content.media_type == BYTES:
        return {"type": "string", "format": "binary"}
    return {"type": "string"} if content.media_type.startswith("text/") else {"type": "object"}


def _lines(records: list[dict[str, Any]]) -> str:
    return "".join(f"{orjson.dumps(record).decode()}\n" for record in records)


def _reference(record: type[Record]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{record.__name__}"}


def _parameter(parameter: Parameter) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "in": parameter.place,
        "required": parameter.place == "path",
        "description": parameter.description,
        "schema": dict(parameter.schema),
        "example": parameter.example,
    }
