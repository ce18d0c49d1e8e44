"""Client of the channel to a worker (vllama.protocol.frames), which all native requests of a model share."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from vllama.errors import EngineError, WorkerDied
from vllama.gateway.relay import Relay, RelayMaker
from vllama.protocol.frames import Form, FrameReader, Kind, frame, open_frame, parse_reply
from vllama.protocol.token_counts import TokenCounts

if TYPE_CHECKING:
    from vllama.gateway.metering import Meter


class ChannelClient(asyncio.Protocol):
    """Connection to one API server process of a worker."""

    def __init__(self, on_lost: Callable[[ChannelClient], None]) -> None:
        """Take what to call once the connection is lost: this channel is of no use from then on."""
        self._on_lost = on_lost
        self._transport: Any = None
        self._reader = FrameReader()
        self._relays: dict[int, Relay] = {}
        self._left: dict[int, Meter] = {}  # of streams whose clients left before the worker had told the tokens
        self._numbers = count(1)
        self._profiles = SentProfiles()
        self.is_open = False

    @property
    def load(self) -> int:
        """The number of running streams."""
        return len(self._relays)

    async def exchange(
        self, path: str, received: int, profile: bytes, body: bytes, make_relay: RelayMaker, *, form: Form
    ) -> None:
        """Send a request with this profile to the worker and relay its reply.

        Raises WorkerDied if the worker exits before its reply is complete. Cancelling aborts the request.
        """
        if not self.is_open:
            raise WorkerDied
        stream = next(self._numbers)
        relay = make_relay(lambda slow: self._tell(Kind.PAUSE if slow else Kind.RESUME, stream))
        self._relays[stream] = relay
        self._transport.write(open_frame(stream, path, received, self._number_of(profile), body, form=form))
        try:
            await relay.finished()
        finally:
            del self._relays[stream]
            # uvicorn reports the end of a reply like a disconnect, so check the end first, cancelled or not.
            if not relay.is_complete:
                self._tell(Kind.CANCEL, stream)
                if relay.meter is not None and not relay.meter.is_counted and self.is_open:
                    self._left[stream] = relay.meter

    def data_received(self, data: bytes) -> None:
        """Pass every frame to its stream's relay."""
        relays = self._relays
        for kind, stream, payload in self._reader.feed(data):
            relay = relays.get(stream)
            if relay is None:
                self._count_for_one_that_left(kind, stream, payload)
            elif kind == Kind.DATA:
                relay.body(payload, last=False)
            elif kind == Kind.LAST:
                relay.body(payload, last=True)
            elif kind == Kind.TOKENS:
                _count(relay.meter, payload)
            else:
                status, content_type, body = parse_reply(payload)
                headers = [(b"content-type", content_type)]
                if kind == Kind.REPLY:
                    headers.append((b"content-length", b"%d" % len(body)))
                relay.head(status, headers)
                if kind == Kind.REPLY:
                    relay.body(body, last=True)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Store the transport of the new connection."""
        self._transport = transport
        self.is_open = True

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail all running streams."""
        del exc
        self.is_open = False
        self._left.clear()
        self._on_lost(self)
        self.end(WorkerDied())

    def end(self, error: EngineError) -> None:
        """End all running streams with this error."""
        for relay in list(self._relays.values()):
            relay.fail(error)

    def close(self) -> None:
        """Close the connection."""
        self._transport.abort()

    def _count_for_one_that_left(self, kind: int, stream: int, payload: bytes) -> None:
        """Take the token counts of a stream whose client has disconnected; its other frames are dropped."""
        if stream not in self._left or kind in {Kind.DATA, Kind.START}:
            return
        meter = self._left.pop(stream)
        if kind == Kind.TOKENS:
            _count(meter, payload)

    def _number_of(self, profile: bytes) -> int:
        """Return the profile's number for the worker, after sending the profile if the worker does not have it."""
        number, is_new, forgotten = self._profiles.number_of(profile)
        for other in forgotten:
            self._transport.write(frame(Kind.PROFILE, other))
        if is_new:
            self._transport.write(frame(Kind.PROFILE, number, profile))
        return number

    def _tell(self, kind: Kind, stream: int) -> None:
        if self.is_open:
            self._transport.write(frame(kind, stream))


def _count(meter: Meter | None, payload: bytes) -> None:
    if meter is not None and (counts := TokenCounts.from_bytes(payload)) is not None:
        meter.count(counts)


class SentProfiles:
    """The profiles that a worker has of a channel: those used last, as each may have megabytes."""

    def __init__(self, most: int = 64, most_bytes: int = 16 << 20) -> None:
        """Keep at most `most` profiles with `most_bytes` together, and the last one whatever its size."""
        self._most, self._most_bytes = most, most_bytes
        self._sent: OrderedDict[bytes, int] = OrderedDict()
        self._bytes = 0
        self._numbers = count()

    def number_of(self, profile: bytes) -> tuple[int, bool, list[int]]:
        """Return the profile's number, whether it must be sent, and the numbers that the worker must forget first."""
        number = self._sent.get(profile)
        if number is not None:
            self._sent.move_to_end(profile)
            return number, False, []
        forgotten = []
        while self._sent and (len(self._sent) >= self._most or self._bytes + len(profile) > self._most_bytes):
            oldest, other = self._sent.popitem(last=False)
            self._bytes -= len(oldest)
            forgotten.append(other)
        number = self._sent[profile] = next(self._numbers)
        self._bytes += len(profile)
        return number, True, forgotten


def not_reached(error: OSError) -> EngineError:
    """Return the error for a failed connection: the worker's fault, or ours (such as too many open files)."""
    if isinstance(error, ConnectionError | FileNotFoundError):
        return WorkerDied()
    return EngineError(f"cannot reach the model's worker: {error.strerror or error}")


_LARGE = 1 << 20
"""Bytes of a body behind which others would wait on the same connection."""


class ChannelPool:
    """The open channels to all workers, by socket. Nothing is kept of a worker whose connections are lost.

    Large bodies have a channel of their own, so that other requests do not wait until a worker has read them.
    """

    def __init__(self) -> None:
        self._open: dict[tuple[Path, bool], ChannelClient] = {}
        self._connecting: WeakValueDictionary[tuple[Path, bool], asyncio.Lock] = WeakValueDictionary()
        """Locks; each is dropped when no task holds it or waits for it."""

    async def least_loaded(self, sockets: Sequence[Path], size: int = 0) -> ChannelClient:
        """Return a channel for a body of this size, to the API server process with the fewest streams of its kind.

        Raises WorkerDied if one does not listen, EngineError if this process cannot connect.
        """
        channels = [await self._connect(socket, is_large=size > _LARGE) for socket in sockets]
        if not channels:
            raise WorkerDied
        return min(channels, key=lambda channel: channel.load)

    def end(self, error: EngineError) -> None:
        """End all streams of all workers with this error."""
        for channel in self._open.values():
            channel.end(error)

    def close(self) -> None:
        """Close all channels."""
        for channel in self._open.values():
            channel.close()
        self._open.clear()

    async def _connect(self, socket: Path, *, is_large: bool) -> ChannelClient:
        key = (socket, is_large)
        channel = self._open.get(key)
        if channel is not None:
            return channel
        lock = self._connecting.setdefault(key, asyncio.Lock())
        async with lock:
            channel = self._open.get(key)
            if channel is not None:
                return channel

            def forget(lost: ChannelClient) -> None:
                if self._open.get(key) is lost:
                    del self._open[key]

            try:
                loop = asyncio.get_running_loop()
                _, channel = await loop.create_unix_connection(lambda: ChannelClient(forget), str(socket))
            except OSError as error:
                raise not_reached(error) from error
            if channel.is_open:
                self._open[key] = channel
            return channel
