"""The gateway keeps nothing of a worker that is gone: no connection, no profile, no lock and no path of a socket."""

from __future__ import annotations

import asyncio
import gc
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping
from contextlib import asynccontextmanager
from pathlib import Path, PosixPath
from typing import Any
from weakref import ref

import pytest
from fake_worker import within

from vllama.errors import WorkerDied
from vllama.gateway.channel_client import ChannelClient, ChannelPool
from vllama.gateway.relay import Relay
from vllama.gateway.upstream import Connection, HttpConnectionPool
from vllama.protocol.frames import Form

pytestmark = pytest.mark.anyio

LOADS = 20


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": True}  # as `vllama serve`


class Socket(PosixPath):
    """A path whose end of life can be seen."""


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory for sockets: their paths have to be short."""
    with tempfile.TemporaryDirectory(prefix="vllama-") as directory:
        yield Path(directory)


@asynccontextmanager
async def listening(socket: Path) -> AsyncIterator[None]:
    """A worker that takes connections, and drops them all at the end of the block."""
    writers: list[asyncio.StreamWriter] = []
    server = await asyncio.start_unix_server(lambda _, writer: writers.append(writer), socket)
    try:
        yield
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()
        await within(server.wait_closed())


async def send(message: MutableMapping[str, Any]) -> None:
    """A client that takes all that is sent to it."""
    del message


async def many_loads(directory: Path, use: Callable[[Socket], Awaitable[Any]]) -> list[ref[Any]]:
    """Use many workers, one after another, which die; return references to all that was used."""
    used: list[ref[Any]] = []
    for number in range(LOADS):
        socket = Socket(directory / f"{number}.sock")
        async with listening(socket):
            connection = await use(socket)
            task = asyncio.create_task(exchange(connection, number))
            await asyncio.sleep(0)  # it has begun
        with pytest.raises(WorkerDied):
            await within(task)
        used += [ref(socket), ref(connection)]
        with pytest.raises(WorkerDied):
            await use(socket)
        del socket, connection, task
    return used


async def exchange(connection: ChannelClient | Connection, number: int) -> None:
    """Begin an exchange that ends with the worker."""

    def make_relay(on_slow: Callable[[bool], None]) -> Relay:
        return Relay(send, (), on_slow)

    if isinstance(connection, ChannelClient):
        profile = b"profile %d" % number
        await connection.exchange("/api/generate", 0, profile, b"{}", make_relay, form=Form.CHECKED)
    else:
        await connection.exchange(b"GET / HTTP/1.1\r\n\r\n", make_relay)


async def left_of(used: list[ref[Any]]) -> list[Any]:
    """What is still referred to after the event loop has done all that is due."""
    for _ in range(10):
        await asyncio.sleep(0)
    gc.collect()
    return [left for each in used if (left := each()) is not None]


async def test_many_loads_and_deaths_leave_no_channel(directory: Path) -> None:
    pool = ChannelPool()

    used = await many_loads(directory, lambda socket: pool.least_loaded([socket]))

    assert await left_of(used) == []


async def test_many_loads_and_deaths_leave_no_http_connection(directory: Path) -> None:
    pool = HttpConnectionPool()

    used = await many_loads(directory, pool.acquire)

    assert await left_of(used) == []


async def test_an_idle_connection_is_forgotten_when_its_worker_dies(directory: Path) -> None:
    pool = HttpConnectionPool()
    socket = Socket(directory / "1.sock")
    async with listening(socket):
        connection = await pool.acquire(socket)
        pool.release(connection)
        assert await pool.acquire(socket) is connection
        pool.release(connection)
    while connection.is_open:
        await asyncio.sleep(0)
    used: list[ref[Any]] = [ref(socket), ref(connection)]
    del socket, connection

    assert await left_of(used) == []
