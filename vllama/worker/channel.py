"""The worker's end of the channel to the gateway (vllama.frames)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from vllama.errors import EngineError, VllamaError, WorkerDied
from vllama.frames import FrameReader, Kind, frame, parse_open, reply_frame
from vllama.ollama.status import JSON, error_body, error_line, status_of
from vllama.worker.profile import Profile
from vllama.worker.sink import Sink

log = logging.getLogger(__name__)

Endpoint = Callable[[bytes, int, Sink, Profile], Awaitable[None]]
"""Answers a body that was received at a monotonic time in ns, for a model of this profile."""


Pulse = Callable[[], Awaitable[Any]]
"""Returns when the engine has answered a question."""


async def listen(path: Path, endpoints: Mapping[str, Endpoint], pulse: Pulse) -> asyncio.AbstractServer:
    """Serve these endpoints, by their paths, to gateways that connect to the socket."""
    path.unlink(missing_ok=True)
    return await asyncio.get_running_loop().create_unix_server(lambda: Channel(endpoints, pulse), str(path))


def socket_path(http_socket: str, rank: int, count: int) -> Path:
    """Where API server process `rank` of `count` has its channel; its HTTP socket is shared by all of them."""
    return Path(f"{http_socket}.{rank}of{count}")


class Channel(asyncio.Protocol):
    """One gateway's connection: a task for each stream, one write for each turn of the loop."""

    def __init__(self, endpoints: Mapping[str, Endpoint], pulse: Pulse) -> None:
        self._endpoints = endpoints
        self._pulse = pulse
        self._pulses: set[asyncio.Task[None]] = set()
        self._reader = FrameReader()
        self._profiles: dict[int, Profile] = {}
        self._streams: dict[int, tuple[asyncio.Task[None], ChannelSink]] = {}
        self._transport: Any = None
        self._pending: list[bytes] = []
        self.writable = asyncio.Event()
        self.writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Act on the gateway's frames."""
        for kind, stream, payload in self._reader.feed(data):
            if kind == Kind.OPEN:
                self._open(stream, payload)
            elif kind == Kind.PROFILE:
                self._profiles[stream] = Profile.from_json(payload)
            elif kind == Kind.PULSE:
                task = asyncio.create_task(self._answer_pulse(stream))
                self._pulses.add(task)
                task.add_done_callback(self._pulses.discard)
            elif (entry := self._streams.get(stream)) is None:
                continue  # it has just ended
            elif kind == Kind.CANCEL:
                entry[0].cancel()
            elif kind == Kind.PAUSE:
                entry[1].resumed.clear()
            elif kind == Kind.RESUME:
                entry[1].resumed.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody listens any more: abort everything."""
        del exc
        self.writable.set()
        for task in (*self._pulses, *(task for task, _ in self._streams.values())):
            task.cancel()

    def pause_writing(self) -> None:
        """The gateway does not read: let the streams wait."""
        self.writable.clear()

    def resume_writing(self) -> None:
        """It reads again."""
        self.writable.set()

    def send(self, data: bytes) -> None:
        """Queue a frame; all frames of this turn of the event loop leave together."""
        if not self._pending:
            asyncio.get_running_loop().call_soon(self._flush)
        self._pending.append(data)

    def abort(self) -> None:
        """End the connection and all its streams."""
        self._transport.abort()

    def _flush(self) -> None:
        data = b"".join(self._pending)
        self._pending.clear()
        if not self._transport.is_closing():
            self._transport.write(data)

    def _open(self, stream: int, payload: bytes) -> None:
        path, received, profile, body = parse_open(payload)
        sink = ChannelSink(self, stream)
        task = asyncio.create_task(self._answer(path, received, self._profiles[profile], body, sink))
        self._streams[stream] = (task, sink)
        task.add_done_callback(lambda _: self._streams.pop(stream, None))

    async def _answer_pulse(self, number: int) -> None:
        try:
            await self._pulse()
        except Exception:
            log.exception("the engine does not answer")
        else:
            self.send(frame(Kind.PULSE, number))

    async def _answer(self, path: str, received: int, profile: Profile, body: bytes, sink: ChannelSink) -> None:
        try:
            await self._endpoints[path](body, received, sink, profile)
        except Exception:
            log.exception("%s failed", path)
            await sink.fail(EngineError("internal error, check the model's log"))


class ChannelSink:
    """One stream of a channel."""

    __slots__ = ("_channel", "_started", "_stream", "resumed")

    def __init__(self, channel: Channel, stream: int) -> None:
        self._channel = channel
        self._stream = stream
        self._started = False
        self.resumed = asyncio.Event()
        self.resumed.set()

    async def reply(self, status: int, content_type: str, body: bytes) -> None:
        """Send one whole reply."""
        self._channel.send(reply_frame(Kind.REPLY, self._stream, status, content_type, body))

    async def start(self, content_type: str) -> None:
        """Begin a stream with status 200."""
        self._started = True
        self._channel.send(reply_frame(Kind.START, self._stream, 200, content_type))

    async def write(self, body: bytes, *, last: bool) -> None:
        """Send a piece of the stream; waits while client or gateway are too slow."""
        if not self.resumed.is_set():
            await self.resumed.wait()
        if not self._channel.writable.is_set():
            await self._channel.writable.wait()
        self._channel.send(frame(Kind.LAST if last else Kind.DATA, self._stream, body))

    async def fail(self, error: VllamaError) -> None:
        """End a reply that will not be complete; without an engine the whole channel, so that the gateway knows."""
        if isinstance(error, WorkerDied):
            self._channel.abort()
        elif self._started:
            await self.write(error_line(str(error)), last=True)
        else:
            await self.reply(status_of(error), JSON, error_body(str(error)))
