"""The OpenAPI document and the page that shows it, compared with the parsers, the routes and recorded replies."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from replay.recording import Exchange, exchanges

from vllama.gateway import library, models
from vllama.gateway.documentation import PATHS
from vllama.gateway.openapi.document import OPERATIONS, document
from vllama.gateway.routing import RawRoute
from vllama.ollama import creation, embedding, options, requests
from vllama.ollama.status import NDJSON

from .conftest import MODEL, Running

DOCUMENT = document()
PARSERS: dict[str, Callable[[bytes], object]] = {
    "/api/generate": requests.GenerateRequest.parse,
    "/api/chat": requests.ChatRequest.parse,
    "/api/embed": embedding.EmbedRequest.parse,
    "/api/embeddings": embedding.EmbeddingsRequest.parse,
    "/api/create": creation.CreateRequest.parse,
}
KNOWN_FIELDS: dict[str, Iterable[str]] = {
    "GenerateRequest": requests._GENERATE.values(),
    "ChatRequest": requests._CHAT.values(),
    "Message": requests._MESSAGE.values(),
    "ToolCall": requests._TOOL_CALL.values(),
    "FunctionCall": requests._FUNCTION_CALL.values(),
    "Options": options.TYPES,
    "EmbedRequest": embedding._EMBED.values(),
    "EmbeddingsRequest": embedding._EMBEDDINGS.values(),
    "ShowRequest": models._SHOW.values(),
    "PullRequest": library._PULL.values(),
    "PushRequest": library._PUSH.values(),
    "CopyRequest": library._COPY.values(),
    "DeleteRequest": library._DELETE.values(),
    "CreateRequest": creation._CREATE.values(),
}
NOT_OURS = {
    # Ollama recommends models; this server never does.
    "/api/experimental/model-recommendations",
}


def strict_schemas() -> dict[str, Any]:
    """The document's schemas, for which fields that they do not name are errors."""
    schemas: dict[str, Any] = copy.deepcopy(DOCUMENT["components"]["schemas"])
    for record in schemas.values():
        if "properties" in record:
            record.setdefault("additionalProperties", False)
    return schemas


STRICT_SCHEMAS = strict_schemas()


def conforms(value: Any, schema: Mapping[str, Any]) -> bool:
    """Whether the value has the schema, and no field that the schema does not name."""
    return bool(Draft202012Validator({**schema, "components": {"schemas": STRICT_SCHEMAS}}).is_valid(value))


def described(method: str, path: str) -> dict[str, Any] | None:
    """The document's operation for a concrete path."""
    path = path.partition("?")[0]
    if path not in DOCUMENT["paths"] and path.startswith("/api/blobs/"):
        path = "/api/blobs/{digest}"
    operation: dict[str, Any] | None = DOCUMENT["paths"].get(path, {}).get(method.lower())
    return operation


def request_examples() -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    for path, operations in DOCUMENT["paths"].items():
        for operation in operations.values():
            for content in operation.get("requestBody", {}).get("content", {}).values():
                for example in content.get("examples", {}).values():
                    yield path, content["schema"], example["value"]


def test_the_document_is_valid_openapi_3_1() -> None:
    OpenAPIV31SpecValidator(DOCUMENT).validate()


@pytest.mark.anyio
async def test_the_document_lists_the_routes_and_nothing_else(gateway: Running) -> None:
    routes = {
        (method.lower(), re.sub(r":path\}", "}", route.path))
        for route in gateway.app.router.routes
        if isinstance(route, RawRoute) and route.path not in PATHS
        for method in route.handlers
    }
    assert {(method, path) for path, methods in DOCUMENT["paths"].items() for method in methods} == routes


@pytest.mark.parametrize("record", KNOWN_FIELDS)
def test_a_request_has_exactly_the_fields_that_the_parser_knows(record: str) -> None:
    assert set(DOCUMENT["components"]["schemas"][record]["properties"]) == set(KNOWN_FIELDS[record])


@pytest.mark.parametrize("option", options.DEFAULTS)
def test_an_option_has_the_default_that_applies(option: str) -> None:
    stated = DOCUMENT["components"]["schemas"]["Options"]["properties"][option].get("default", ())
    assert stated == options.DEFAULTS[option]


def test_every_field_has_a_description() -> None:
    for name, schema in DOCUMENT["components"]["schemas"].items():
        for field, described in schema.get("properties", {}).items():
            assert described.get("description") or "$ref" in described, f"{name}.{field}"


def test_every_request_example_is_valid_and_names_known_fields_only() -> None:
    for path, schema, example in request_examples():
        assert conforms(example, schema), path


def test_every_request_example_is_accepted_by_our_parsers() -> None:
    parsed = set()
    for path, _, example in request_examples():
        if path in PARSERS:
            PARSERS[path](json.dumps(example).encode())
            parsed.add(path)
    assert parsed == set(PARSERS)


def test_every_body_with_a_schema_has_an_example_and_every_reply_example_is_valid() -> None:
    for operation in OPERATIONS:
        replies = [body for reply in operation.replies.values() for body in reply.contents]
        for content in [operation.request, *replies]:
            assert content is None or content.record is None or content.examples, operation.path
        for content in replies:
            if content.record is None:
                continue
            for example in content.examples.values():
                schema = {"$ref": f"#/components/schemas/{content.record.__name__}"}
                for record in example if content.media_type == NDJSON else [example]:
                    assert conforms(record, schema), operation.path


def recorded_records(exchange: Exchange) -> list[Any]:
    """The JSON objects of a recorded reply; none if it is not JSON."""
    kind, body = exchange.response.header("content-type"), exchange.response.body
    if not body or not kind.startswith(("application/json", NDJSON)):
        return []
    return [json.loads(line) for line in body.splitlines()] if kind.startswith(NDJSON) else [json.loads(body)]


NATIVE = [
    exchange.name
    for exchange in exchanges().values()
    if exchange.request.path.startswith("/api/")
    and described(exchange.request.method, exchange.request.path)
    and exchange.request.path not in NOT_OURS
    and recorded_records(exchange)
]


@pytest.mark.parametrize("name", NATIVE)
def test_a_recorded_reply_has_the_documented_form(name: str) -> None:
    exchange = exchanges()[name]
    operation = described(exchange.request.method, exchange.request.path)
    assert operation is not None
    for record in recorded_records(exchange):
        if "error" in record:
            schema = {"$ref": "#/components/schemas/Error"}
        elif "200" in operation["responses"]:
            contents = operation["responses"]["200"]["content"]
            schema = next(iter(contents.values()))["schema"]
        else:
            assert exchange.request.path == "/api/push"  # Ollama pushes
            continue
        assert conforms(record, schema)


def test_recorded_replies_cover_the_routes_that_answer() -> None:
    covered = {exchanges()[name].request.path.partition("?")[0] for name in NATIVE}
    answering = {
        path
        for path, methods in DOCUMENT["paths"].items()
        if path.startswith("/api/") and "{" not in path
        for operation in methods.values()
        if operation["responses"].get("200", {}).get("content")
    }
    assert answering - covered <= NOT_OURS


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/api/version", None),
        ("GET", "/api/status", None),
        ("GET", "/api/tags", None),
        ("GET", "/api/ps", None),
        ("GET", "/api/ps?all=true", None),
        ("GET", "/api/experimental/model-recommendations", None),
        ("POST", "/api/show", {"model": MODEL}),
        ("POST", "/api/show", {"model": MODEL, "verbose": True}),
        ("POST", "/api/show", {"model": "nope"}),
        ("POST", "/api/generate", {"model": MODEL}),
        ("POST", "/api/chat", {"model": MODEL}),
        ("POST", "/api/generate", {"model": "nope"}),
        ("POST", "/api/embed", {"model": MODEL, "input": 1}),
        ("POST", "/api/create", {"model": "mine", "from": MODEL}),
        ("POST", "/api/create", {"model": "mine", "from": MODEL, "stream": False}),
        ("POST", "/api/create", {"model": "mine"}),
        ("POST", "/api/pull", {"model": "!!"}),
        ("POST", "/api/push", {"model": MODEL}),
        ("POST", "/api/copy", {"source": "nope", "destination": "mine"}),
        ("DELETE", "/api/delete", {"model": "nope"}),
        ("POST", "/api/blobs/nope", None),
        ("POST", "/api/me", None),
        ("POST", "/api/signout", None),
        ("POST", "/api/experimental/web_search", None),
        ("POST", "/api/experimental/web_fetch", None),
    ],
)
async def test_our_own_reply_has_a_documented_status_type_and_form(
    gateway: Running, method: str, path: str, body: Any
) -> None:
    await gateway.load()
    reply = await gateway.client.request(method, path, json=body)
    operation = described(method, path)
    assert operation is not None
    kind = reply.headers["content-type"].partition(";")[0]
    schema = operation["responses"][str(reply.status_code)]["content"][kind]["schema"]
    for line in reply.text.splitlines() if kind == NDJSON else [reply.text]:
        assert conforms(json.loads(line), schema)


@pytest.mark.anyio
async def test_the_server_sends_the_document(gateway: Running) -> None:
    reply = await gateway.get("/openapi.json")
    assert reply.headers["content-type"] == "application/json"
    assert reply.json() == DOCUMENT


@pytest.mark.anyio
async def test_the_page_and_its_files_come_from_the_server_alone(gateway: Running) -> None:
    page = await gateway.get("/docs")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "://" not in page.text
    assert '"validatorUrl": null' in page.text
    assert "default-src 'self'" in page.headers["content-security-policy"]
    linked = set(re.findall(r'(?:href|src)="([^"]+)"', page.text))
    assert {f"/{path}" for path in linked} | {"/docs", "/openapi.json"} == set(PATHS)
    for path in linked:
        file = await gateway.get(f"/{path}")
        assert (file.status_code, bool(file.content)) == (200, True)
        if path.endswith(".css"):
            assert not re.search(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", file.text)


@pytest.mark.anyio
@pytest.mark.parametrize("path", PATHS)
async def test_the_documentation_answers_get_and_head_only(gateway: Running, path: str) -> None:
    got, head, post = await gateway.get(path), await gateway.client.head(path), await gateway.post(path)
    assert (got.status_code, head.status_code, post.status_code) == (200, 200, 405)
    assert head.headers["content-length"] == got.headers["content-length"]
    assert head.content == b""
    assert set(post.headers["allow"].split(", ")) == {"GET", "HEAD"}


@pytest.mark.anyio
@pytest.mark.parametrize("header", [{"host": "evil.example"}, {"origin": "https://evil.example"}])
@pytest.mark.parametrize("path", PATHS)
async def test_the_documentation_is_behind_the_guard(gateway: Running, path: str, header: dict[str, str]) -> None:
    assert (await gateway.get(path, headers=header)).status_code == 403


@pytest.mark.parametrize("field", ["extra", "models"])
def test_a_field_that_is_not_documented_is_found(field: str) -> None:
    value: dict[str, Any] = {"models": [], field: 1}
    assert not conforms(value, {"$ref": "#/components/schemas/TagsReply"})


def test_a_server_that_nobody_asks_for_documentation_does_not_import_it() -> None:
    program = """
import sys
from pathlib import Path
import vllama.gateway.server
from vllama.gateway.app import Gateway
from vllama.settings import Settings
from vllama.store.model_store import ModelStore
settings = Settings.from_environment({}, models=Path("/nonexistent"))
gateway = Gateway(settings, ModelStore(settings.models), None)
print([name for name in sys.modules if name.startswith(("vllama.gateway.openapi", "fastapi_offline"))])
gateway.openapi()
print("vllama.gateway.openapi.document" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "True"]
