"""Pull, copy and delete over HTTP (contract §1.7, §1.10); what a pull does is the subject of tests/store."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import AsyncIterator, Generator
from dataclasses import replace
from pathlib import Path

import pytest
from fake_worker import PATIENCE, within

from vllama.errors import SourceUnavailable
from vllama.names import ModelName
from vllama.ollama.status import NDJSON
from vllama.store.model_store import ModelStore
from vllama.store.progress import Progress

from .conftest import MODEL, RunGateway, Running
from .raw_http import RawConnection

pytestmark = pytest.mark.anyio


class ScriptedPull:
    """Pulls step by step, when it may; `closed` is set when nobody wants more."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.asked: list[str] = []
        self.precisions: list[str] = []
        self.may_go_on = threading.Event()
        self.closed = threading.Event()

    def pull(self, store: ModelStore, name: ModelName) -> Generator[Progress, None, None]:
        self.asked.append(name.display)
        self.precisions.append(store.precision)
        try:
            yield Progress("pulling manifest")
            assert self.may_go_on.wait(PATIENCE)
            if self.error is not None:
                raise self.error
            yield Progress("pulling 3f1c9a0b77de", f"sha256:{'3' * 64}", 4200, 2100)
            yield Progress("success")
        finally:
            self.closed.set()


@pytest.fixture
def puller() -> ScriptedPull:
    return ScriptedPull()


@pytest.fixture
async def gateway(run_gateway: RunGateway, puller: ScriptedPull) -> AsyncIterator[Running]:
    async with run_gateway(puller=puller.pull) as running:
        yield running


async def begun(gateway: Running) -> RawConnection:
    client = await gateway.connect()
    client.request("POST", "/api/pull", b'{"name":"x"}')
    head = await client.head()
    assert (head.status, head["content-type"]) == (200, NDJSON)
    assert await client.chunk() == b'{"status":"pulling manifest"}\n'
    return client


async def test_each_step_of_a_pull_is_a_line_as_soon_as_it_is_made(gateway: Running, puller: ScriptedPull) -> None:
    client = await begun(gateway)
    puller.may_go_on.set()
    assert (await client.chunks()).splitlines() == [
        b'{"status":"pulling 3f1c9a0b77de","digest":"sha256:%b","total":4200,"completed":2100}' % (b"3" * 64),
        b'{"status":"success"}',
    ]
    assert puller.asked == ["x:latest"]


async def test_other_requests_are_answered_during_a_pull(gateway: Running, puller: ScriptedPull) -> None:
    client = await begun(gateway)
    assert (await gateway.get("/api/tags")).status_code == 200
    puller.may_go_on.set()
    await client.chunks()


async def test_a_failed_pull_says_so_in_its_stream(gateway: Running, puller: ScriptedPull) -> None:
    puller.error = SourceUnavailable("pull model manifest: file does not exist")
    client = await begun(gateway)
    puller.may_go_on.set()
    assert await client.chunks() == b'{"error":"pull model manifest: file does not exist"}\n'


async def test_a_failed_pull_without_a_stream_is_a_500(gateway: Running, puller: ScriptedPull) -> None:
    puller.error = SourceUnavailable("pull model manifest: file does not exist")
    puller.may_go_on.set()
    reply = await gateway.post("/api/pull", {"model": "x", "stream": False})
    assert (reply.status_code, reply.json()) == (500, {"error": "pull model manifest: file does not exist"})


async def test_a_pull_without_a_stream_says_success(gateway: Running, puller: ScriptedPull) -> None:
    puller.may_go_on.set()
    reply = await gateway.post("/api/pull", {"model": "x", "stream": False})
    assert (reply.status_code, reply.json()) == (200, {"status": "success"})


async def test_a_pull_converts_with_the_precision_of_its_request_or_of_the_server(
    gateway: Running, puller: ScriptedPull
) -> None:
    puller.may_go_on.set()
    for fields in ({}, {"precision": "bf16"}, {"precision": "exact"}):
        assert (await gateway.post("/api/pull", {"name": "x", "stream": False, **fields})).status_code == 200
    assert puller.precisions == ["exact", "bf16", "exact"]
    refused = await gateway.post("/api/pull", {"name": "x", "precision": "fp8"})
    assert (refused.status_code, refused.json()) == (400, {"error": "precision must be one of exact, bf16"})


async def test_a_client_that_leaves_ends_the_pull_after_the_step_under_way(
    gateway: Running, puller: ScriptedPull
) -> None:
    client = await begun(gateway)
    client.close()
    await gateway.get("/")
    assert not puller.closed.is_set()
    puller.may_go_on.set()
    assert await within(asyncio.to_thread(puller.closed.wait, PATIENCE))


async def test_a_copy_is_another_name_for_the_same_files(gateway: Running) -> None:
    reply = await gateway.post("/api/copy", {"source": MODEL, "destination": "me/mine"})
    assert (reply.status_code, reply.content) == (200, b"")
    copy, original = (gateway.store.get(ModelName.parse(name)) for name in ("me/mine", MODEL))
    assert (copy.digest, copy.snapshot) == (original.digest, original.snapshot)
    assert copy.modified_at > original.modified_at


async def test_a_copy_is_loaded_under_its_own_name(gateway: Running) -> None:
    await gateway.post("/api/copy", {"source": MODEL, "destination": "gpt-4"})
    assert (await gateway.load("gpt-4")).manifest.name.display == "gpt-4:latest"


@pytest.mark.parametrize("field", ["model", "name"])
async def test_a_deleted_model_is_gone(gateway: Running, field: str) -> None:
    reply = await gateway.client.request("DELETE", "/api/delete", json={field: "SmolLM2:135m"})
    assert (reply.status_code, reply.content) == (200, b"")
    assert gateway.store.list() == []


async def test_the_files_of_a_deleted_model_go_with_its_last_name(gateway: Running) -> None:
    place = _move_into_the_store(gateway)
    await gateway.post("/api/copy", {"source": MODEL, "destination": "gpt-4"})
    for name, is_there in ((MODEL, True), ("gpt-4", False)):
        await gateway.client.request("DELETE", "/api/delete", json={"model": name})
        assert place.exists() is is_there


async def test_a_deleted_model_is_told_as_long_as_it_is_loaded(gateway: Running) -> None:
    place = _move_into_the_store(gateway)
    await gateway.load()
    await gateway.client.request("DELETE", "/api/delete", json={"model": MODEL})
    assert not place.exists()
    (told,) = (await gateway.get("/api/ps")).json()["models"]
    assert (told["name"], told["details"]["family"], told["details"]["families"]) == (MODEL, "", None)


def _move_into_the_store(gateway: Running) -> Path:
    manifest = gateway.store.get(ModelName.parse(MODEL))
    place = gateway.store.snapshot_directory("abc")
    shutil.copytree(manifest.snapshot, place)
    gateway.store.put(replace(manifest, snapshot=place))
    return place


async def test_a_deleted_model_goes_on_until_it_is_unloaded(gateway: Running) -> None:
    worker = await gateway.load()
    sent = gateway.send("POST", "/api/generate", json={"model": MODEL, "prompt": "hi"})
    exchange = await worker.next_exchange()
    await gateway.client.request("DELETE", "/api/delete", json={"model": MODEL})
    exchange.reply(b"{}")
    assert (await sent).status_code == 200
    assert not worker.exited.done()
    assert (await gateway.post("/api/generate", {"model": MODEL, "prompt": "hi"})).status_code == 404
