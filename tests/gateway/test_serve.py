"""`vllama serve`, from its socket to its last worker: what it does before it serves, and how it stops."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_worker import Exchange, FakeLauncher, FakeWorker, within
from tiny_snapshot import write_snapshot

from vllama.durations import FOREVER, Nanoseconds, from_seconds
from vllama.errors import BadEngineFlags, InvalidName, LoadFailed, SettingsError, StoreError, VllamaError
from vllama.gateway import server
from vllama.gateway.library import Puller
from vllama.names import ModelName
from vllama.ollama.status import NDJSON
from vllama.settings import Preload, Settings
from vllama.store import pull as store_pull
from vllama.store.manifest import Manifest
from vllama.store.model_store import ModelStore
from vllama.store.progress import Progress

from .conftest import MODEL
from .raw_http import RawConnection

pytestmark = pytest.mark.anyio

GENERATE, COMPLETIONS = "/api/generate", "/v1/chat/completions"
BODY = b'{"model":"smollm2:135m","prompt":"hi","input":"hi","max_tokens":9,"messages":[{"role":"user","content":"hi"}]}'
MESSAGES, EVENTS = "/v1/messages", "text/event-stream"
SIGNALS = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])


class Serving:
    """A server at work in this process."""

    def __init__(self, port: int, launcher: FakeLauncher, done: asyncio.Task[int]) -> None:
        self.port, self.launcher, self.done = port, launcher, done
        self.url = f"http://127.0.0.1:{port}"
        self._connections: list[RawConnection] = []

    async def get(self, path: str) -> httpx.Response:
        async with httpx.AsyncClient(trust_env=False, verify=False) as client:
            return await client.get(self.url + path)

    async def connect(self) -> RawConnection:
        self._connections.append(await RawConnection.open(self.port))
        return self._connections[-1]

    async def begin_stream(self, path: str, content_type: str = NDJSON) -> tuple[FakeWorker, Exchange, RawConnection]:
        """A reply of the model that is loaded first, of which the client has read the first chunk."""
        worker = await within(self.launcher.started.get())
        client = await self.connect()
        client.request("POST", path, BODY)
        exchange = await worker.next_exchange()
        exchange.start(content_type)
        exchange.write(b"a\n")
        await client.head()
        assert await client.chunk() == b"a\n"
        return worker, exchange, client

    def close(self) -> None:
        for connection in self._connections:
            connection.close()

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        os.kill(os.getpid(), number)

    async def refuses_connections(self) -> None:
        """Return when nobody can connect any more."""

        async def look() -> None:
            while True:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", self.port)):
                        return
                await asyncio.sleep(0)

        await within(look())


Serve = Callable[..., AbstractAsyncContextManager[Serving]]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.from_environment({}, models=tmp_path / "models")


@pytest.fixture
def store(settings: Settings, manifest: Manifest) -> ModelStore:
    store = ModelStore(settings.models)
    store.put(manifest)
    return store


@pytest.fixture
def serve(settings: Settings, store: ModelStore, sockets: Path) -> Serve:
    """Return a context manager that runs the server: `serve("smollm2:135m", prepare=change_the_launcher)`."""

    @asynccontextmanager
    async def run(
        *models: str,
        prepare: Callable[[FakeLauncher], None] = lambda launcher: None,
        reread: Callable[[], Settings] = lambda: settings,
        puller: Puller = store_pull.pull,
        **changes: Any,
    ) -> AsyncIterator[Serving]:
        launcher = FakeLauncher(sockets)
        prepare(launcher)
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        changed = replace(settings, **changes)
        loads = [*server._named(store, models, changed), *server._preloaded(store, changed)]
        done = asyncio.create_task(
            server._serve(
                changed,
                reread,
                store,
                loads,
                listener=listener,
                launcher=launcher,
                puller=puller,
            )
        )
        await asyncio.sleep(0)  # its signal handlers are in place
        serving = Serving(port, launcher, done)
        try:
            yield serving
        finally:
            serving.close()
            if not done.done():
                serving.signal()
            await within(done)

    return run


@SIGNALS
async def test_a_signal_ends_an_idle_server_and_its_workers(serve: Serve, number: signal.Signals) -> None:
    async with serve(MODEL) as serving:
        worker = await within(serving.launcher.started.get())
        await serving.get("/api/version")
        serving.signal(number)
        assert await within(serving.done) == 0
        assert worker.exited.done()
        assert serving.launcher.is_closed


@SIGNALS
@pytest.mark.parametrize("path", [GENERATE, COMPLETIONS])
async def test_a_signal_lets_a_running_stream_finish_and_refuses_new_ones(
    serve: Serve, number: signal.Signals, path: str
) -> None:
    async with serve(MODEL) as serving:
        worker, exchange, client = await serving.begin_stream(path)
        serving.signal(number)
        await serving.refuses_connections()
        for piece in (b"b\n", b"c\n"):
            exchange.write(piece)
            assert await client.chunk() == piece
        assert not worker.exited.done()
        exchange.finish(b"d\n")
        assert await client.chunks() == b"d\n"
        assert await client.rest() == b""
        assert await within(serving.done) == 0
        assert worker.exited.done()


async def test_a_signal_lets_a_whole_reply_finish(serve: Serve) -> None:
    async with serve(MODEL) as serving:
        worker = await within(serving.launcher.started.get())
        client = await serving.connect()
        client.request("POST", GENERATE, BODY)
        exchange = await worker.next_exchange()
        serving.signal()
        await serving.refuses_connections()
        exchange.reply(b'{"done":true}')
        head = await client.head()
        assert await client.exactly(int(head["content-length"])) == b'{"done":true}'
        assert await within(serving.done) == 0


async def test_a_signal_closes_connections_that_wait_for_their_next_request(serve: Serve) -> None:
    async with serve() as serving:
        client = await serving.connect()
        client.request("GET", "/")
        await client.exactly(int((await client.head())["content-length"]))
        serving.signal()
        assert await client.rest() == b""
        assert await within(serving.done) == 0


async def test_a_signal_tells_those_who_wait_for_a_load(serve: Serve) -> None:
    async with serve(prepare=lambda launcher: launcher.may_load.clear()) as serving:
        client = await serving.connect()
        client.request("POST", GENERATE, BODY)
        worker = await within(serving.launcher.started.get())
        serving.signal()
        head = await client.head()
        assert head.status == 503
        assert await client.exactly(int(head["content-length"])) == b'{"error":"the server is stopping"}'
        assert await within(serving.done) == 0
        assert worker.exited.done()


async def test_a_second_signal_ends_running_streams(serve: Serve) -> None:
    async with serve(MODEL) as serving:
        worker, _, client = await serving.begin_stream(GENERATE)
        serving.signal()
        await serving.refuses_connections()
        serving.signal()
        assert (await client.chunk()).startswith(b'{"error":')
        assert await within(serving.done) == 0
        assert worker.exited.done()


def closing(path: str) -> bytes:
    """What ends a stream of this path when the server stops."""
    if path.startswith("/api/"):
        return b'{"error":"the server is stopping"}\n'
    if path == MESSAGES:
        return b'\nevent: error\ndata: {"type":"error","error":{"type":"overloaded_error",'
    error = b'{"error":{"message":"the server is stopping","type":"api_error","param":null,"code":null}}'
    return b"\ndata: " + error + b"\n\n" + (b"data: [DONE]\n\n" if path == COMPLETIONS else b"")


@pytest.mark.parametrize(
    ("path", "content_type"),
    [(GENERATE, NDJSON), ("/api/chat", NDJSON), *((path, EVENTS) for path in (COMPLETIONS, "/v1/responses", MESSAGES))],
)
async def test_a_stream_that_outlasts_the_drain_ends_with_an_error_in_its_own_format(
    serve: Serve, path: str, content_type: str
) -> None:
    async with serve(MODEL, drain_timeout=from_seconds(0.1)) as serving:
        worker, exchange, client = await serving.begin_stream(path, content_type)
        serving.signal()
        ending = await client.chunks()
        assert ending.startswith(closing(path))
        assert ending.endswith(b"\n")
        assert await within(serving.done) == 0
        assert exchange.cancelled.is_set() or worker.exited.done()


async def test_who_has_heard_nothing_when_the_drain_ends_gets_a_status(serve: Serve) -> None:
    async with serve(MODEL, drain_timeout=from_seconds(0.1)) as serving:
        worker = await within(serving.launcher.started.get())
        clients = [await serving.connect() for _ in range(2)]
        for client, path in zip(clients, (GENERATE, COMPLETIONS), strict=True):
            client.request("POST", path, BODY)
            await worker.next_exchange()
        serving.signal()
        for client in clients:
            head = await client.head()
            assert head.status == 503
            assert b"the server is stopping" in await client.exactly(int(head["content-length"]))
        assert await within(serving.done) == 0


async def test_without_a_drain_streams_end_at_the_first_signal(serve: Serve) -> None:
    async with serve(MODEL, drain_timeout=0) as serving:
        worker = await within(serving.launcher.started.get())
        client = await serving.connect()
        client.request("POST", GENERATE, BODY)
        exchange = await worker.next_exchange()
        exchange.start(NDJSON)
        exchange.write(b"a\n")
        await client.head()
        serving.signal()
        assert await client.chunks() == b"a\n" + closing(GENERATE)
        assert await within(serving.done) == 0


async def test_a_pull_that_outlasts_the_drain_ends_with_an_error_line(serve: Serve) -> None:
    goes_on = threading.Event()

    def pull(*_: Any) -> Generator[Progress, None, None]:
        yield Progress("pulling manifest")
        goes_on.wait(20)
        yield Progress("success")

    async with serve(puller=pull, drain_timeout=from_seconds(0.1)) as serving:
        client = await serving.connect()
        client.request("POST", "/api/pull", b'{"model":"other"}')
        await client.head()
        assert await client.chunk() == b'{"status":"pulling manifest"}\n'
        serving.signal()
        assert await client.chunks() == closing("/api/pull")
        goes_on.set()
        assert await within(serving.done) == 0


async def test_named_models_are_loaded_at_once_and_stay(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    async with serve(MODEL) as serving:
        await within(serving.launcher.started.get())
        (model,) = (await serving.get("/api/ps")).json()["models"]
        assert (model["name"], int(model["expires_at"][:4]) > 2100) == (MODEL, True)
        curl = f'curl http://localhost:{serving.port}/api/chat -d \'{{"model":"{MODEL}"'
        assert curl in capsys.readouterr().out


async def test_a_keep_alive_that_the_operator_set_counts_for_named_models_too(serve: Serve) -> None:
    async with serve(MODEL, keep_alive=from_seconds(60)) as serving:
        await within(serving.launcher.started.get())
        (model,) = (await serving.get("/api/ps")).json()["models"]
        assert int(model["expires_at"][:4]) < 2100


@pytest.mark.parametrize(("keep_alive", "stays"), [(None, False), (FOREVER, True)])
async def test_models_to_preload_are_loaded_at_once_with_their_own_keep_alive(
    serve: Serve, keep_alive: Nanoseconds | None, *, stays: bool
) -> None:
    async with serve(preload_models=(Preload("nope"), Preload(MODEL, keep_alive))) as serving:
        await within(serving.launcher.started.get())
        (model,) = (await serving.get("/api/ps")).json()["models"]
        assert model["name"] == MODEL
        assert (int(model["expires_at"][:4]) > 2100) is stays


async def test_lists_are_served_while_named_models_load(serve: Serve) -> None:
    async with serve(MODEL, prepare=lambda launcher: launcher.may_load.clear()) as serving:
        await within(serving.launcher.started.get())
        assert (await serving.get("/api/tags")).status_code == 200


async def test_a_named_model_that_cannot_be_loaded_does_not_end_the_server(
    serve: Serve, store: ModelStore, manifest: Manifest, caplog: pytest.LogCaptureFixture
) -> None:
    store.put(replace(manifest, name=ModelName.parse("other")))

    def fail(launcher: FakeLauncher) -> None:
        launcher.failure = LoadFailed("out of memory")

    async with serve(MODEL, "other", prepare=fail) as serving:
        for _ in range(2):
            await within(serving.launcher.started.get())
        assert (await serving.get("/api/version")).status_code == 200
    assert f"cannot load {MODEL}: out of memory" in caplog.text


async def test_flags_that_vllm_refuses_in_a_load_end_the_server(
    serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(launcher: FakeLauncher) -> None:
        launcher.failure = BadEngineFlags("unrecognized arguments: --foo")

    async with serve(MODEL, prepare=refuse) as serving:
        assert await within(serving.done) == server.USAGE_EXIT
    assert "Error: vLLM does not accept its flags: unrecognized arguments: --foo" in capsys.readouterr().err


async def test_flags_are_checked_where_no_model_is_named(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(launcher: FakeLauncher) -> None:
        launcher.refusal = BadEngineFlags("unrecognized arguments: --foo")

    async with serve(prepare=refuse) as serving:
        assert await within(serving.done) == server.USAGE_EXIT
    assert "unrecognized arguments: --foo" in capsys.readouterr().err
    assert serving.launcher.workers == []


async def test_a_check_that_fails_for_another_reason_does_not_end_the_server(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(launcher: FakeLauncher) -> None:
        launcher.refusal = OSError("no more processes")

    async with serve(prepare=fail) as serving:
        assert (await serving.get("/api/version")).status_code == 200
        serving.signal()
        assert await within(serving.done) == 0
    assert "no more processes" in caplog.text
    assert serving.launcher.is_closed


def test_a_port_that_is_in_use_is_said_so(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        where = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(VllamaError) as caught:
            server.serve(replace(settings, host=where), lambda: settings, models=[], engine_flags=[], compile=False)
    assert str(caught.value) == f"cannot listen on {where}: Address already in use. Is another server running there?"


@pytest.mark.parametrize("host", ["192.0.2.1:11434", "[2001:db8::1]:11434", "no-such-host.invalid:11434"])
def test_an_address_that_is_not_ours_is_said_so(settings: Settings, host: str) -> None:
    with pytest.raises(VllamaError, match="cannot listen on "):
        server.serve(
            replace(settings, host=host, insecure=True), lambda: settings, models=[], engine_flags=[], compile=False
        )


def test_a_server_that_others_reach_does_not_start_without_keys(settings: Settings) -> None:
    with pytest.raises(SettingsError, match="vllama key create"):
        server.serve(replace(settings, host="0.0.0.0"), lambda: settings, models=[], engine_flags=[], compile=False)


def test_name_and_path_take_a_snapshot_in_where_it_is(store: ModelStore, tmp_path: Path) -> None:
    snapshot = write_snapshot(tmp_path / "mine")
    staged = server._stage(store, f"mine:v1={snapshot}")
    assert staged == store.get(ModelName.parse("mine:v1"))
    assert staged.snapshot == snapshot
    assert staged.size == sum(path.stat().st_size for path in snapshot.iterdir())


def test_a_path_may_begin_with_the_home_directory(
    store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_snapshot(tmp_path / "mine")
    assert server._stage(store, "mine=~/mine").snapshot == tmp_path / "mine"


def test_a_name_alone_is_looked_up(store: ModelStore, manifest: Manifest) -> None:
    assert server._stage(store, "SMOLLM2:135m") == manifest


def test_an_unknown_name_says_how_to_get_it_and_what_is_there(store: ModelStore) -> None:
    with pytest.raises(VllamaError) as caught:
        server._stage(store, "nope")
    assert "model 'nope:latest' not found; pull it with `vllama pull nope:latest`" in str(caught.value)
    assert MODEL in str(caught.value)


def test_a_path_without_a_model_is_said_so(store: ModelStore, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="nowhere"):
        server._stage(store, f"mine={tmp_path / 'nowhere'}")


def test_a_bad_name_is_refused(store: ModelStore, tmp_path: Path) -> None:
    with pytest.raises(InvalidName):
        server._stage(store, f"!!={tmp_path}")
