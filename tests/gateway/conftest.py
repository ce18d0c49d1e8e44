"""A gateway on loopback: the real application in the real server, with workers that have no engine."""

from __future__ import annotations

import asyncio
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fake_worker import PATIENCE, FakeLauncher, FakeWorker, within
from tiny_snapshot import make_manifest, write_snapshot

from vllama.gateway.app import Gateway
from vllama.gateway.library import Puller
from vllama.gateway.server import server_config
from vllama.scheduler.scheduler import Scheduler
from vllama.settings import Settings
from vllama.store.manifest import Manifest
from vllama.store.model_store import ModelStore
from vllama.store.pull import pull

from .raw_http import RawConnection

MODEL = "smollm2:135m"


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": True}  # as `vllama serve`


class _Server(uvicorn.Server):
    """Uvicorn that ends at once; how it ends gracefully is the subject of test_drain.py."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.end = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def main_loop(self) -> None:
        await self.on_tick(0)
        await self.end.wait()

    async def shutdown(self, sockets: Any = None) -> None:
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        if self.server_state.tasks:
            await within(asyncio.wait(self.server_state.tasks))


class Running:
    """A gateway at work, and clients of it."""

    def __init__(
        self,
        settings: Settings,
        *,
        port: int,
        app: Gateway,
        store: ModelStore,
        scheduler: Scheduler,
        launcher: FakeLauncher,
    ) -> None:
        self.settings = settings
        self.port, self.app, self.store, self.scheduler, self.launcher = port, app, store, scheduler, launcher
        self.client = httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE, trust_env=False, verify=False
        )
        self._connections: list[RawConnection] = []

    def send(self, method: str, path: str, **arguments: Any) -> asyncio.Task[httpx.Response]:
        """Send a request without waiting for its reply."""
        return asyncio.create_task(self.client.request(method, path, **arguments))

    async def get(self, path: str, **arguments: Any) -> httpx.Response:
        return await self.client.get(path, **arguments)

    async def post(self, path: str, json: Any = None, **arguments: Any) -> httpx.Response:
        return await self.client.post(path, json=json, **arguments)

    async def connect(self, *, buffer: int | None = None) -> RawConnection:
        """A connection of which the test sees every byte."""
        self._connections.append(await RawConnection.open(self.port, buffer=buffer))
        return self._connections[-1]

    async def load(self, model: str = MODEL, keep_alive: Any = None) -> FakeWorker:
        """Load a model and return its worker."""
        reply = await self.post("/api/generate", {"model": model, "keep_alive": keep_alive})
        assert reply.json()["done_reason"] == "load"
        return self.launcher.workers[-1]

    async def worker(self) -> FakeWorker:
        """The next worker that is started."""
        return await within(self.launcher.started.get())

    @property
    def leases(self) -> int:
        return sum(view.leases for view in self.scheduler.residents())

    async def no_leases(self) -> None:
        """Return when nobody holds a lease any more."""

        async def look() -> None:
            while self.leases:
                await asyncio.sleep(0)

        await within(look())

    async def close(self) -> None:
        for connection in self._connections:
            connection.close()
        await self.client.aclose()


RunGateway = Callable[..., AbstractAsyncContextManager[Running]]


@pytest.fixture
def sockets() -> Iterator[Path]:
    """A directory for sockets: their paths have to be short."""
    with tempfile.TemporaryDirectory(prefix="vllama-") as directory:
        yield Path(directory)


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return make_manifest(MODEL, write_snapshot(tmp_path / "snapshot"))


@pytest.fixture
def run_gateway(tmp_path: Path, sockets: Path, manifest: Manifest) -> RunGateway:
    """Return a context manager that runs a gateway: `run_gateway(max_queue=1)`; one model is in its store."""

    @asynccontextmanager
    async def run(
        *, api_servers: int = 1, empty: bool = False, puller: Puller = pull, **changes: Any
    ) -> AsyncIterator[Running]:
        settings = Settings.from_environment({}, models=tmp_path / "models", host="127.0.0.1:0", **changes)
        store = ModelStore(settings.models)
        if not empty:
            store.put(manifest)
        launcher = FakeLauncher(sockets, api_servers=api_servers)
        scheduler = Scheduler(settings, launcher)
        gateway = Gateway(settings, store, scheduler, launcher.serving, puller=puller)
        server = _Server(server_config(gateway))
        listener = socket.create_server(("127.0.0.1", 0))
        serving = asyncio.create_task(server.serve([listener]))
        running = Running(
            settings,
            port=listener.getsockname()[1],
            app=gateway,
            store=store,
            scheduler=scheduler,
            launcher=launcher,
        )
        try:
            yield running
        finally:
            await running.close()
            server.end.set()
            await within(serving)
            await running.no_leases()
            await within(scheduler.close())
            gateway.close()

    return run


@pytest.fixture
async def gateway(run_gateway: RunGateway) -> AsyncIterator[Running]:
    """A gateway with the default settings."""
    async with run_gateway() as running:
        yield running
