"""Schemas of clients: what the gateway refuses, forwards, and says in a header (contract §2.4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from .conftest import MODEL, Running

pytestmark = pytest.mark.anyio

HI = [{"role": "user", "content": "hi"}]
RELAXED = "x-vllama-format-relaxed"
SET = {"type": "array", "items": {"type": "string"}, "uniqueItems": True}
ENFORCED = {"type": "array", "items": {"type": "string"}}


def in_v1_chat(schema: Any) -> dict[str, Any]:
    wanted = {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": schema}}
    return {"model": MODEL, "messages": HI, "response_format": wanted}


def in_v1_completion(schema: Any) -> dict[str, Any]:
    wanted = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    return {"model": MODEL, "prompt": "hi", "raw": True, "response_format": wanted}


def in_v1_response(schema: Any) -> dict[str, Any]:
    return {"model": MODEL, "input": "hi", "text": {"format": {"type": "json_schema", "name": "n", "schema": schema}}}


def in_v1_message(schema: Any) -> dict[str, Any]:
    wanted = {"format": {"type": "json_schema", "schema": schema}}
    return {"model": MODEL, "max_tokens": 9, "messages": HI, "output_config": wanted}


V1: dict[str, tuple[Callable[[Any], dict[str, Any]], tuple[str, ...]]] = {
    "/v1/chat/completions": (in_v1_chat, ("response_format", "json_schema", "schema")),
    "/v1/completions": (in_v1_completion, ("response_format", "json_schema", "schema")),
    "/v1/responses": (in_v1_response, ("text", "format", "schema")),
    "/v1/messages": (in_v1_message, ("output_config", "format", "schema")),
}
NATIVE: dict[str, dict[str, Any]] = {
    "/api/chat": {"model": MODEL, "messages": HI},
    "/api/generate": {"model": MODEL, "prompt": "hi"},
}


@pytest.mark.parametrize(("path", "body"), NATIVE.items())
async def test_a_native_route_forwards_the_schema_and_lists_what_is_not_enforced(
    gateway: Running, path: str, body: dict[str, Any]
) -> None:
    worker = await gateway.load()
    for schema, told in ((SET, "/uniqueItems"), (ENFORCED, None), ("json", None)):
        sent = gateway.send("POST", path, json={**body, "format": schema})
        exchange = await worker.next_exchange()
        assert exchange.json["format"] == schema
        exchange.reply(b"{}")
        assert (await sent).headers.get(RELAXED) == told


@pytest.mark.parametrize("path", V1)
async def test_v1_forwards_what_is_enforced_and_lists_the_rest(gateway: Running, path: str) -> None:
    body, place = V1[path]
    worker = await gateway.load()
    for schema, told in ((SET, "/uniqueItems"), (ENFORCED, None)):
        sent = gateway.send("POST", path, json=body(schema))
        exchange = await worker.next_exchange()
        forwarded = exchange.json
        for name in place:
            forwarded = forwarded[name]
        assert forwarded == ENFORCED
        exchange.reply(b"{}")
        assert (await sent).headers.get(RELAXED) == told


async def test_structured_outputs_of_vllm_are_forwarded_unchanged(gateway: Running) -> None:
    worker = await gateway.load()
    wanted = {"json": SET}
    body = {"model": MODEL, "messages": HI, "structured_outputs": wanted}
    sent = gateway.send("POST", "/v1/chat/completions", json=body)
    exchange = await worker.next_exchange()
    assert exchange.json["structured_outputs"] == wanted
    exchange.reply(b"{}")
    await sent


@pytest.mark.parametrize("path", [*NATIVE, *V1])
@pytest.mark.parametrize(
    ("schema", "cause"),
    [
        ({"enum": []}, "invalid JSON schema at /enum: nothing satisfies it"),
        ({"type": "string", "pattern": "("}, "invalid JSON schema at /pattern: is no regular expression: "),
    ],
)
async def test_a_schema_that_cannot_be_served_loads_no_model(
    gateway: Running, path: str, schema: Any, cause: str
) -> None:
    body = {**NATIVE[path], "format": schema} if path in NATIVE else V1[path][0](schema)
    reply = await gateway.post(path, body)

    error = reply.json()["error"]
    assert reply.status_code == 400
    assert (error if isinstance(error, str) else error["message"]).startswith(cause)
    assert gateway.launcher.workers == []


async def test_what_is_not_enforced_is_logged_once(gateway: Running, caplog: pytest.LogCaptureFixture) -> None:
    worker = await gateway.load()
    schema = {"type": "object", "properties": {"logged_once": SET}}
    for _ in range(2):
        sent = gateway.send("POST", "/api/chat", json={**NATIVE["/api/chat"], "format": schema})
        (await worker.next_exchange()).reply(b"{}")
        await sent

    logged = [record.message for record in caplog.records if "logged_once" in record.message]
    assert logged == ["a JSON Schema is enforced in part: grammars cannot enforce /properties/logged_once/uniqueItems"]
