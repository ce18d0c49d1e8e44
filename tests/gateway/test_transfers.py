"""Pulls and creations that many clients ask for at once: one transfer, watched by all, and no thread held in vain."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Generator

import orjson
import pytest
from fake_worker import PATIENCE, within

from vllama.names import ModelName
from vllama.store.model_store import ModelStore
from vllama.store.progress import Progress

from .conftest import MODEL, RunGateway, Running
from .raw_http import RawConnection

pytestmark = pytest.mark.anyio

MANY = 48
"""More clients than the default pool of asyncio has threads on any machine of ours."""


class LockedPull:
    """Pulls that hold a key of the store's staging until they may go on; counts those that hold it."""

    def __init__(self) -> None:
        self.may_go_on = threading.Event()
        self.begun = 0
        self.done = 0

    def pull(self, store: ModelStore, name: ModelName) -> Generator[Progress, None, None]:
        yield Progress("pulling manifest")
        with (yield from store.turn("one-key")):
            self.begun += 1
            while not self.may_go_on.is_set():
                yield Progress(f"pulling {name.display}", pause=0.01)
            self.done += 1
        yield Progress("success")


@pytest.fixture
def puller() -> LockedPull:
    return LockedPull()


@pytest.fixture
async def gateway(run_gateway: RunGateway, puller: LockedPull) -> AsyncIterator[Running]:
    async with run_gateway(puller=puller.pull) as running:
        yield running


async def begun(gateway: Running, model: str) -> RawConnection:
    """Start a pull, and read until it runs; the connection stays open."""
    client = await gateway.connect()
    client.request("POST", "/api/pull", orjson.dumps({"name": model}))
    assert (await client.head()).status == 200
    await within(client.chunk())
    return client


async def test_a_model_that_many_clients_pull_at_once_is_transferred_once(gateway: Running, puller: LockedPull) -> None:
    clients = [await begun(gateway, name) for name in ("x", "X:latest") * (MANY // 2)]  # names ignore case
    puller.may_go_on.set()
    for client in clients:
        assert (await within(client.chunks())).endswith(b'{"status":"success"}\n')
    assert puller.begun == 1


async def test_work_that_waits_for_a_lock_keeps_nobody_waiting(gateway: Running, puller: LockedPull) -> None:
    first, *others = [await begun(gateway, f"model-{number}") for number in range(MANY)]
    digest = "sha256:" + "0" * 64
    assert (await within(gateway.client.head(f"/api/blobs/{digest}"))).status_code == 404
    assert (await within(gateway.client.post(f"/api/blobs/{digest}", content=b"x"))).status_code == 400
    assert (await within(gateway.client.request("DELETE", "/api/delete", json={"name": MODEL}))).status_code == 200
    for other in others:
        other.close()
    puller.may_go_on.set()
    assert (await within(first.chunks())).endswith(b'{"status":"success"}\n')


async def test_a_pull_goes_on_while_one_client_watches_and_ends_with_the_last(
    gateway: Running, puller: LockedPull
) -> None:
    first, second = [await begun(gateway, "x") for _ in range(2)]
    first.close()
    await within(second.chunk())
    await within(second.chunk())
    assert puller.begun == 1
    second.close()

    async def free() -> None:
        while True:
            try:
                with gateway.store.alone("one-key") as is_alone:
                    if is_alone:
                        return
            finally:
                await asyncio.sleep(0)

    await within(free())
    assert not puller.done


async def test_a_client_that_joins_sees_the_steps_so_far(gateway: Running, puller: LockedPull) -> None:
    await begun(gateway, "x")
    joined = await gateway.connect()
    joined.request("POST", "/api/pull", b'{"name":"x"}')
    await joined.head()
    assert await within(joined.chunk()) == b'{"status":"pulling manifest"}\n'
    puller.may_go_on.set()


async def test_more_transfers_than_the_setting_allows_get_503(run_gateway: RunGateway, puller: LockedPull) -> None:
    async with run_gateway(puller=puller.pull, max_transfers=2) as gateway:
        await begun(gateway, "a")
        await begun(gateway, "b")
        refused = await gateway.post("/api/pull", {"name": "c"})
        assert refused.status_code == 503
        assert "too many pulls" in refused.json()["error"]
        await begun(gateway, "a")
        puller.may_go_on.set()


def test_a_call_that_hangs_does_not_keep_the_process_from_ending(tmp_path: object) -> None:
    import subprocess
    import sys

    code = (
        "import threading; from vllama.machine.threads import Threads; Threads('x', 1).submit(threading.Event().wait)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE)
