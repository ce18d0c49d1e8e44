"""The worker's end of the channel to the gateway (vllama.protocol.frames)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from vllama.errors import EngineError, VllamaError, WorkerDied
from vllama.ollama.status import JSON, error_body, error_line, status_of
from vllama.protocol.frames import Form, FrameReader, Kind, Opened, frame, parse_open, reply_frame
from vllama.protocol.profile import Profile
from vllama.protocol.token_counts import TokenCounts
from vllama.worker.sink import Sink

log = logging.getLogger(__name__)

Endpoint = Callable[[bytes, int, Sink, Profile, Form], Awaitable[None]]
"""Answers a body of this form that was received at a monotonic time in ns, for a model of this profile."""


Pulse = Callable[[], Awaitable[Any]]
"""Function that returns when the engine has responded."""


async def listen(path: Path, endpoints: Mapping[str, Endpoint], pulse: Pulse) -> asyncio.AbstractServer:
    """Serve these endpoints, keyed by path, on the socket."""
    path.unlink(missing_ok=True)
    return await asyncio.get_running_loop().create_unix_server(lambda: ChannelConnection(endpoints, pulse), str(path))


class ChannelConnection(asyncio.Protocol):
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
        """Start accepting frames."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Act on the gateway's frames."""
        for kind, stream, payload in self._reader.feed(data):
            if kind == Kind.OPEN:
                self._open(stream, payload)
            elif kind == Kind.PROFILE and payload:
                self._profiles[stream] = Profile.from_json(payload)
            elif kind == Kind.PROFILE:
                self._profiles.pop(stream, None)
            elif kind == Kind.HEARD:
                self.send(frame(Kind.HEARD, stream))
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
        """Abort all streams: the gateway has disconnected."""
        del exc
        self.writable.set()
        for task in (*self._pulses, *(task for task, _ in self._streams.values())):
            task.cancel()

    def pause_writing(self) -> None:
        """Pause the streams, because the gateway does not read."""
        self.writable.clear()

    def resume_writing(self) -> None:
        """Resume the streams, because the gateway reads again."""
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
        opened = parse_open(payload)
        sink = ChannelSink(self, stream)
        task = asyncio.create_task(self._answer(opened, self._profiles[opened.profile], sink))
        self._streams[stream] = (task, sink)
        task.add_done_callback(lambda _: self._streams.pop(stream, None))

    async def _answer_pulse(self, number: int) -> None:
        try:
            await self._pulse()
        except Exception:
            log.exception("the engine does not respond")
        else:
            self.send(frame(Kind.PULSE, number))

    async def _answer(self, opened: Opened, profile: Profile, sink: ChannelSink) -> None:
        try:
            await self._endpoints[opened.path](opened.body, opened.received, sink, profile, opened.form)
        except asyncio.CancelledError:
            if not sink.is_counted:
                sink.count(TokenCounts())  # the gateway may wait for the counts of a client that left
            raise
        except Exception:
            log.exception("%s failed", opened.path)
            await sink.fail(EngineError("internal error, check the model's log"))


class ChannelSink:
    """One stream of a channel."""

    __slots__ = ("_channel", "_started", "_stream", "is_counted", "resumed")

    def __init__(self, channel: ChannelConnection, stream: int) -> None:
        self._channel = channel
        self._stream = stream
        self._started = False
        self.is_counted = False
        self.resumed = asyncio.Event()
        self.resumed.set()

    def add_headers(self, headers: tuple[tuple[bytes, bytes], ...]) -> None:
        """Do nothing: the gateway adds its own headers to what comes over a channel."""

    def count(self, counts: TokenCounts) -> None:
        """Send the token counts."""
        self.is_counted = True
        self._channel.send(frame(Kind.TOKENS, self._stream, counts.to_bytes()))

    async def reply(self, status: int, content_type: str, body: bytes) -> None:
        """Send a complete reply."""
        self._channel.send(reply_frame(Kind.REPLY, self._stream, status, content_type, body))

    async def start(self, content_type: str) -> None:
        """Start a stream with status 200."""
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
        """End an incomplete reply; without an engine close the channel, so that the gateway notices."""
        if isinstance(error, WorkerDied):
            self._channel.abort()
        elif self._started:
            await self.write(error_line(str(error)), last=True)
        else:
            await self.reply(status_of(error), JSON, error_body(str(error)))
