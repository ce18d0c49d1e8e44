"""A worker without an engine: real sockets, the real channel, real HTTP; a test decides every byte and when.

exchange = await worker.next_exchange()     # what the gateway asked
exchange.start(NDJSON)
exchange.write(b'{"response":"a"}\n')
exchange.finish()
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import httptools
import orjson

from vllama.installed.registry import InstalledVllm
from vllama.ollama.status import JSON
from vllama.protocol.frames import FrameReader, Kind, frame, parse_open, reply_frame
from vllama.protocol.profile import Profile
from vllama.protocol.token_counts import TokenCounts
from vllama.scheduler.load_phases import LoadProgress, Phase
from vllama.scheduler.memory import Placement
from vllama.scheduler.policy import Room, anywhere
from vllama.scheduler.process import Memory
from vllama.scheduler.serving import Serving
from vllama.settings import Settings
from vllama.store.manifest import Manifest

PATIENCE = 20.0
"""Seconds after which something that never comes fails a test."""

T = TypeVar("T")


async def within(awaitable: Awaitable[T]) -> T:
    """Wait no longer than PATIENCE."""
    return await asyncio.wait_for(awaitable, PATIENCE)


class Exchange(ABC):
    """One request of the gateway, and the means to answer it."""

    def __init__(self, path: str, body: bytes) -> None:
        self.path, self.body = path, body
        self.cancelled = asyncio.Event()
        self.paused = asyncio.Event()
        self.resumed = asyncio.Event()

    def pause(self) -> None:
        """The gateway cannot take more now."""
        self.paused.set()
        self.resumed.clear()

    def resume(self) -> None:
        """It can again."""
        self.paused.clear()
        self.resumed.set()

    async def stream(self, content_type: str, pieces: Iterable[bytes]) -> None:
        """Send a whole stream, and wait when told to."""
        self.start(content_type)
        for piece in pieces:
            self.write(piece)
            await asyncio.sleep(0)  # the gateway's turn
            if self.paused.is_set():
                await within(self.resumed.wait())
        self.finish()

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)

    @abstractmethod
    def reply(self, body: bytes, *, status: int = 200, content_type: str = JSON) -> None:
        """Send one whole reply."""

    @abstractmethod
    def start(self, content_type: str) -> None:
        """Begin a stream."""

    @abstractmethod
    def write(self, data: bytes) -> None:
        """Send a piece of the stream."""

    @abstractmethod
    def finish(self, data: bytes = b"") -> None:
        """Send the last piece."""


class ChannelExchange(Exchange):
    """A stream on the channel."""

    def __init__(self, channel: ChannelEnd, number: int, payload: bytes) -> None:
        path, self.received, profile, self.form, body = parse_open(payload)
        self.profile = channel.profiles[profile]
        super().__init__(path, body)
        self.channel, self.number = channel, number

    def reply(self, body: bytes, *, status: int = 200, content_type: str = JSON) -> None:
        self.channel.write(reply_frame(Kind.REPLY, self.number, status, content_type, body))

    def start(self, content_type: str) -> None:
        self.channel.write(reply_frame(Kind.START, self.number, 200, content_type))

    def write(self, data: bytes) -> None:
        self.channel.write(frame(Kind.DATA, self.number, data))

    def count(self, prompt: int, cached: int, output: int) -> None:
        """Tell the token counts."""
        self.channel.write(frame(Kind.TOKENS, self.number, TokenCounts(prompt, cached, output).to_bytes()))

    def finish(self, data: bytes = b"") -> None:
        self.channel.write(frame(Kind.LAST, self.number, data))


class ChannelEnd(asyncio.Protocol):
    """One connection of a gateway to one channel socket."""

    def __init__(self, worker: FakeWorker) -> None:
        self._worker = worker
        self._reader = FrameReader()
        self._exchanges: dict[int, ChannelExchange] = {}
        self.profiles: dict[int, Profile] = {}
        self.transport: Any = None
        self.kinds: list[Kind] = []
        self.closed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self._worker.connections.append(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set()

    def data_received(self, data: bytes) -> None:
        for number, stream, payload in self._reader.feed(data):
            kind = Kind(number)
            if kind is Kind.PROFILE:
                if payload:
                    self.profiles[stream] = Profile.from_json(payload)
                else:
                    del self.profiles[stream]
                continue
            self.kinds.append(kind)
            if kind is Kind.OPEN:
                self._exchanges[stream] = exchange = ChannelExchange(self, stream, payload)
                self._worker.exchanges.put_nowait(exchange)
            elif kind is Kind.CANCEL:
                self._exchanges[stream].cancelled.set()
            elif kind is Kind.PAUSE:
                self._exchanges[stream].pause()
            elif kind is Kind.RESUME:
                self._exchanges[stream].resume()

    def write(self, data: bytes) -> None:
        self.transport.write(data)


class HttpExchange(Exchange):
    """A request over HTTP; streams are chunked, whole replies have a Content-Length."""

    def __init__(self, connection: HttpEnd, path: str, headers: dict[str, str], body: bytes) -> None:
        super().__init__(path, body)
        self.connection, self.headers = connection, headers

    def raw(self, data: bytes) -> None:
        """Send these very bytes."""
        self.connection.transport.write(data)

    def reply(
        self, body: bytes, *, status: int = 200, content_type: str = JSON, headers: tuple[tuple[bytes, bytes], ...] = ()
    ) -> None:
        self.raw(b"HTTP/1.1 %d OK\r\ncontent-type: %b\r\n" % (status, content_type.encode()))
        self.raw(b"".join(b"%b: %b\r\n" % header for header in headers))
        self.raw(b"content-length: %d\r\n\r\n%b" % (len(body), body))

    def start(self, content_type: str) -> None:
        self.raw(b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\n" % content_type.encode())
        self.raw(b"transfer-encoding: chunked\r\n\r\n")

    def write(self, data: bytes) -> None:
        self.raw(b"%x\r\n%b\r\n" % (len(data), data))

    def finish(self, data: bytes = b"") -> None:
        if data:
            self.write(data)
        self.raw(b"0\r\n\r\n")


class HttpEnd(asyncio.Protocol):
    """One HTTP connection of a gateway."""

    def __init__(self, worker: FakeWorker) -> None:
        self._worker = worker
        self._parser: Any = httptools.HttpRequestParser(self)
        self._url = self._body = b""
        self._headers: dict[str, str] = {}
        self._exchange: HttpExchange | None = None
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self._worker.connections.append(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._exchange is not None:
            self._exchange.cancelled.set()

    def pause_writing(self) -> None:
        if self._exchange is not None:
            self._exchange.pause()

    def resume_writing(self) -> None:
        if self._exchange is not None:
            self._exchange.resume()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._url, self._body, self._headers = url, b"", {}

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode()] = value.decode()

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        self._exchange = HttpExchange(self, self._url.decode(), self._headers, self._body)
        self._worker.exchanges.put_nowait(self._exchange)


class FakeWorker:
    """What `vllama.scheduler.process.WorkerProcess` is to the scheduler, and a vLLM to the gateway."""

    def __init__(self, launcher: FakeLauncher, manifest: Manifest, socket: Path) -> None:
        self._launcher = launcher
        self._exit: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._servers: list[asyncio.AbstractServer] = []
        self.exited: asyncio.Task[int] = asyncio.create_task(self._until_exit())
        self.manifest = manifest
        self.socket = socket
        self.channels: tuple[Path, ...] = ()
        self.context_length = 0
        self.slots = launcher.slots
        self.adapter_rank = 0
        self.memory = Memory(1000, 800)
        self.sleeps = 0
        self.exchanges: asyncio.Queue[Exchange] = asyncio.Queue()
        self.connections: list[ChannelEnd | HttpEnd] = []

    async def _until_exit(self) -> int:
        return await self._exit

    def load_progress(self) -> LoadProgress:
        return LoadProgress(Phase.WEIGHTS, 40, "Loading shards: 40% Completed")

    def why_it_died(self) -> str:
        return "its worker died: a process of the worker was killed by SIGKILL"

    async def become_ready(self, stall_timeout: float | None) -> None:
        await self._launcher.may_load.wait()
        if self._launcher.failure is not None:
            raise self._launcher.failure
        loop, count = asyncio.get_running_loop(), self._launcher.api_servers
        self.channels = tuple(Path(f"{self.socket}.{rank}of{count}") for rank in range(count))
        self._servers = [await loop.create_unix_server(lambda: HttpEnd(self), str(self.socket))]
        for channel in self.channels:
            self._servers.append(await loop.create_unix_server(lambda: ChannelEnd(self), str(channel)))
        self.context_length = 4096

    @property
    def can_sleep(self) -> bool:
        return self._launcher.can_sleep

    async def sleep(self) -> float:
        await self._launcher.may_fall_asleep.wait()
        self.sleeps += 1
        return 0.0

    async def wake(self, *, keeps_copy: bool) -> float:
        await self._launcher.may_wake.wait()
        return 0.0

    async def prepare_sleep(self) -> None:
        """Do nothing: there are no weights."""

    async def forget_copy(self) -> None:
        """Do nothing: there is no copy."""

    async def next_exchange(self) -> Any:
        """Return what the gateway asks next, an HttpExchange or a ChannelExchange."""
        return await within(self.exchanges.get())

    def die(self, *, last_words: bool = False) -> None:
        """Break all connections and exit; with `last_words`, what was written still arrives."""
        if self._exit.done():
            return
        for server in self._servers:
            server.close()
        for connection in self.connections:
            if last_words:
                connection.transport.close()
            else:
                connection.transport.abort()
        self._exit.set_result(-9)

    async def stop(self, grace: float) -> None:
        self.die()

    async def give_up(self) -> None:
        self.die()


class FakeLauncher:
    """Starts FakeWorkers. `may_load` holds loads back while it is clear; `failure` makes them fail."""

    def __init__(self, directory: Path, *, api_servers: int = 1) -> None:
        self._directory = directory
        self.api_servers = api_servers
        self.serving = Serving(installed=InstalledVllm(deciding=frozenset({"Qwen3ForCausalLM"})))
        self.may_load = asyncio.Event()
        self.may_load.set()
        self.can_sleep = False
        self.slots = 0
        self.may_fall_asleep, self.may_wake = asyncio.Event(), asyncio.Event()
        self.may_fall_asleep.set()
        self.may_wake.set()
        self.failure: Exception | None = None
        self.refusal: Exception | None = None
        self.workers: list[FakeWorker] = []
        self.started: asyncio.Queue[FakeWorker] = asyncio.Queue()
        self.settings: Settings | None = None
        self.is_closed = False

    def engine_of(self, manifest: Manifest) -> str:
        return self.serving.engine_of(manifest)

    async def room(self, manifest: Manifest, occupants: Sequence[Any], asleep: Placement | None) -> Room:
        return anywhere

    async def bring_up(
        self, worker: FakeWorker, manifest: Manifest, placement: Placement | None, stall_timeout: float | None
    ) -> Placement | None:
        await worker.become_ready(stall_timeout)
        return placement

    async def put_to_sleep(
        self, worker: FakeWorker, manifest: Manifest, placement: Placement | None
    ) -> tuple[float, Placement | None]:
        return await worker.sleep(), placement

    async def start(self, manifest: Manifest, placement: Placement | None = None) -> FakeWorker:
        worker = FakeWorker(self, manifest, self._directory / f"{len(self.workers)}.sock")
        self.workers.append(worker)
        self.started.put_nowait(worker)
        return worker

    def keep_spares(self, is_quiet: Callable[[], bool]) -> None:
        """It has none."""

    async def drop_spares(self) -> None:
        """It has none."""

    async def check_flags(self) -> None:
        if self.refusal is not None:
            raise self.refusal

    def adopt(self, settings: Settings) -> None:
        self.settings = settings

    def close(self) -> None:
        self.is_closed = True
