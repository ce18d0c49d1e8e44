"""Requests about models that are wrong on purpose, or that leave in the middle: no 500 and no traceback."""

from __future__ import annotations

import hashlib
import logging
from typing import Any

import orjson
import pytest
from fake_worker import within

from .conftest import MODEL, Running

pytestmark = pytest.mark.anyio


async def upload(gateway: Running, data: bytes) -> str:
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert (await gateway.client.post(f"/api/blobs/{digest}", content=data)).status_code in {200, 201}
    return digest


@pytest.mark.parametrize(
    "path", ["/api/blobs/%0d%0aX:1/", "/api/blobs/%0aX", "/api/blobs/%00", "/%0d%0a/", "/api/tags%0d%0a/"]
)
@pytest.mark.parametrize("method", ["POST", "GET", "HEAD"])
async def test_line_breaks_in_a_path_drop_no_connection(gateway: Running, method: str, path: str) -> None:
    client = await gateway.connect()
    client.request(method, path, b"")
    head = await within(client.head())
    assert head.status < 500
    assert "x" not in {name for name, _ in head.headers}


@pytest.mark.parametrize(
    "config",
    [
        {"quantization_config": [1]},
        {"architectures": [1]},
        {"max_position_embeddings": 10**30},
        {"model_type": {"a": 1}},
        [],
        "x",
    ],
)
async def test_uploaded_settings_of_the_wrong_type_are_no_error_of_the_server(
    gateway: Running, config: Any, caplog: pytest.LogCaptureFixture
) -> None:
    weights = len(header := b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}').to_bytes(8, "little") + header
    files = {
        "config.json": await upload(
            gateway,
            orjson.dumps(config, option=orjson.OPT_PASSTHROUGH_SUBCLASS)
            if config != {"max_position_embeddings": 10**30}
            else b'{"max_position_embeddings": 1000000000000000000000000000000}',
        ),
        "model.safetensors": await upload(gateway, weights + bytes(4)),
        "tokenizer.json": await upload(gateway, b"{}"),
    }
    reply = await gateway.post("/api/create", {"model": "x", "files": files, "stream": False})
    assert reply.status_code in {200, 400}, reply.text
    listed = await gateway.get("/api/tags")
    assert listed.status_code == 200
    assert MODEL in [model["name"] for model in listed.json()["models"]]
    assert "Traceback" not in caplog.text


async def test_a_costly_template_is_refused_or_stored_without_computing(gateway: Running) -> None:
    for template in ("{{ (3**(10**9)) > 1 }}", "{{ 'x'|center(10**10) }}", "{{ a }}" * 99_999):
        reply = await within(
            gateway.post("/api/create", {"model": "y", "from": MODEL, "template": template, "stream": False})
        )
        assert reply.status_code in {200, 400}


async def test_leaving_a_streamed_creation_logs_no_traceback(
    gateway: Running, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        for _ in range(20):
            client = await gateway.connect()
            client.request("POST", "/api/create", orjson.dumps({"model": "z", "from": MODEL, "system": "s"}))
            await client.head()
            client.close()
        assert (await gateway.get("/api/tags")).status_code == 200
    assert "Traceback" not in caplog.text
    assert not [record for record in caplog.records if record.exc_info]
