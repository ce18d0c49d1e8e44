"""The routes under test, read from the server's own descriptions, so that a new route needs no line here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from vllama.gateway.documentation import PATHS
from vllama.gateway.openapi import store

Schema = Mapping[str, Any]


@dataclass(frozen=True, eq=False, repr=False)
class Route:
    """A method of a path, with what its request body may be.

    `media_type` is empty for routes without a body. `schema` refers to `definitions` by the last part of each `$ref`.
    `replies` has the schemas of successful replies by media type. `changes_models` is true for routes that may replace
    or delete models. `models` are those whose workers have the route; empty if the gateway itself answers.
    """

    method: str
    path: str
    media_type: str = ""
    schema: Schema = field(default_factory=dict)
    definitions: Schema = field(default_factory=dict)
    examples: tuple[Any, ...] = ()
    replies: Schema = field(default_factory=dict)
    reply_definitions: Schema = field(default_factory=dict)
    changes_models: bool = False
    models: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return self.name  # hypothesis prints it often, and the schemas are long

    @property
    def name(self) -> str:
        """The route in the report."""
        return f"{self.method} {self.path}"

    def with_path(self, parameter: str) -> str:
        """Return the path with this text for its parameter, if it has one."""
        return re.sub(r"\{\w+\}", lambda _: parameter, self.path)


def routes(gateway: Schema, workers: Iterable[tuple[str, Schema]]) -> list[Route]:
    """Return the routes of the gateway's OpenAPI document; those it forwards have the schemas of the workers'.

    `workers` are the names of models with the documents of their workers.
    """
    forwarded: dict[str, _Forwarded] = {}
    for model, document in workers:
        for path, request in _requests(document):
            forwarded.setdefault(path, _Forwarded(request, document)).models.append(model)
    found = [
        _route(gateway, path, method, operation, forwarded.get(path))
        for path, methods in gateway["paths"].items()
        for method, operation in methods.items()
    ]
    return [*found, *(Route(method, path) for path in PATHS for method in ("GET", "HEAD"))]


@dataclass(frozen=True)
class _Forwarded:
    """A route of workers: the schema of its request, the document that has it, and the workers' models."""

    schema: Schema
    document: Schema
    models: list[str] = field(default_factory=list)


def _requests(document: Schema) -> Iterator[tuple[str, Schema]]:
    """The schemas of JSON bodies that are posted, by path."""
    for path, methods in document["paths"].items():
        content = methods.get("post", {}).get("requestBody", {}).get("content", {})
        if "application/json" in content:
            yield path, content["application/json"]["schema"]


def _route(document: Schema, path: str, method: str, operation: Schema, forwarded: _Forwarded | None) -> Route:
    content = operation.get("requestBody", {}).get("content", {})
    media_type = next(iter(content), "")
    body = content.get(media_type, {})
    schema, described_in = body.get("schema", {}), document
    if forwarded is not None and "$ref" not in schema:
        schema, described_in = forwarded.schema, forwarded.document
    replies = operation["responses"].get("200", {}).get("content", {})
    return Route(
        method.upper(),
        path,
        media_type,
        schema,
        described_in.get("components", {}).get("schemas", {}),
        tuple(example["value"] for example in body.get("examples", {}).values()),
        {kind: reply["schema"] for kind, reply in replies.items() if "json" in kind},
        document["components"]["schemas"],
        store.TAG in operation.get("tags", ()),
        tuple(forwarded.models) if forwarded and method == "post" else (),
    )
