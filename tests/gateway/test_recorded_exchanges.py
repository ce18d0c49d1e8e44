"""Exchanges recorded with Ollama 0.24.0, sent again byte for byte: the replies are the same.

`recorded/exchanges.json` holds those that need no answer of a model. Dates were taken out.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vllama.names import ModelName
from vllama.store.manifest import Manifest

from .conftest import RunGateway, Running
from .raw_http import Head

pytestmark = pytest.mark.anyio

EXCHANGES = json.loads(Path(__file__).with_name("recorded").joinpath("exchanges.json").read_bytes())
OF_THE_CONNECTION = ("date", "connection", "content-length", "transfer-encoding")
LOADS = ("100_generate_empty_prompt_load", "205_chat_empty_messages_load_stream_default")
SETTINGS: dict[str, dict[str, Any]] = {
    "864_origins_star_preflight": {"origins": ("*",)},
    "000_api_tags_empty_store": {"empty": True},
}


@pytest.mark.parametrize("name", EXCHANGES)
async def test_a_recorded_request_gets_the_recorded_reply(
    name: str, run_gateway: RunGateway, manifest: Manifest
) -> None:
    expected_head, expected_body = split(EXCHANGES[name]["reply"])
    async with run_gateway(**SETTINGS.get(name, {})) as gateway:
        if "empty" not in SETTINGS.get(name, {}):
            gateway.store.put(replace(manifest, name=ModelName.parse("mycopy")))
        head, body = await send(gateway, EXCHANGES[name]["request"])
        assert head.status == expected_head.status
        assert headers_that_matter(head) == headers_that_matter(expected_head)
        assert without_time(body) == without_time(expected_body)
        assert bool(gateway.launcher.workers) == (name in LOADS)


async def send(gateway: Running, request: str) -> tuple[Head, str]:
    """Send a recorded request on a connection of its own."""
    head, _, body = request.partition("\n\n")
    connection = await gateway.connect()
    connection.send("\r\n".join([*head.split("\n"), "Connection: close", "", body]).encode())
    answer = await connection.head()
    return answer, (await connection.rest()).decode()


def split(reply: str) -> tuple[Head, str]:
    head, _, body = reply.partition("\n\n")
    status, *lines = head.split("\n")
    pairs = [line.partition(": ")[::2] for line in lines]
    return Head(int(status.split()[1]), tuple((name.lower(), value) for name, value in pairs)), body


def headers_that_matter(head: Head) -> list[tuple[str, str]]:
    """All but those of the connection.

    Ollama's router also puts Allow on replies that its CORS handler gives before; its own order of methods
    means nothing; and /v1 says no charset, which is UTF-8 for JSON anyway.
    """
    headers = []
    for name, value in head.headers:
        if name in {"date", "connection", "content-length", "transfer-encoding"} or (
            name == "allow" and head.status != 405
        ):
            continue
        parts = sorted(value.split(", ")) if name == "allow" else [value.removesuffix("; charset=utf-8")]
        headers.append((name, ",".join(parts)))
    return sorted(headers)


def without_time(body: str) -> str:
    """Ollama ends its /v1 bodies with a line end, which no JSON parser sees."""
    return re.sub(r'"created_at":"[^"]*Z"', '"created_at":"…Z"', body).rstrip("\n")
