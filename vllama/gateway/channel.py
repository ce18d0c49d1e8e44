"""The gateway's end of the channel to a worker (vllama.frames): all native requests of a model share it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

from vllama.errors import EngineError, WorkerDied
from vllama.frames import FrameReader, Kind, frame, open_frame, parse_reply
from vllama.gateway.relay import Relay, RelayMaker


class Channel(asyncio.Protocol):
    """A connection to one API server process of a worker."""

    def __init__(self) -> None:
        self._transport: Any = None
        self._reader = FrameReader()
        self._relays: dict[int, Relay] = {}
        self._numbers = count(1)
        self._profiles: dict[bytes, int] = {}
        self.is_open = False

    @property
    def load(self) -> int:
        """Streams under way."""
        return len(self._relays)

    async def exchange(self, path: str, received: int, profile: bytes, body: bytes, make_relay: RelayMaker) -> None:
        """Have the worker answer for a model of this profile, and relay its reply.

        Raises WorkerDied where the worker goes before its reply is complete. Cancelling aborts the request.
        """
        if not self.is_open:
            raise WorkerDied
        stream = next(self._numbers)
        relay = make_relay(lambda slow: self._tell(Kind.PAUSE if slow else Kind.RESUME, stream))
        self._relays[stream] = relay
        self._transport.write(open_frame(stream, path, received, self._number_of(profile), body))
        try:
            await relay.finished()
        finally:
            del self._relays[stream]
            # The server reports the end of a reply as if the client had left: cancelled or not, what counts is the end.
            if not relay.is_complete:
                self._tell(Kind.CANCEL, stream)

    def data_received(self, data: bytes) -> None:
        """Hand every frame to its stream's relay."""
        relays = self._relays
        for kind, stream, payload in self._reader.feed(data):
            relay = relays.get(stream)
            if relay is None:
                continue  # its client has just left
            if kind == Kind.DATA:
                relay.body(payload, last=False)
            elif kind == Kind.LAST:
                relay.body(payload, last=True)
            else:
                status, content_type, body = parse_reply(payload)
                headers = [(b"content-type", content_type)]
                if kind == Kind.REPLY:
                    headers.append((b"content-length", b"%d" % len(body)))
                relay.head(status, headers)
                if kind == Kind.REPLY:
                    relay.body(body, last=True)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Become usable."""
        self._transport = transport
        self.is_open = True

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the streams that were under way."""
        del exc
        self.is_open = False
        self.end(WorkerDied())

    def end(self, error: EngineError) -> None:
        """End all streams with this error."""
        for relay in list(self._relays.values()):
            relay.fail(error)

    def close(self) -> None:
        """Close it."""
        self._transport.abort()

    def _number_of(self, profile: bytes) -> int:
        """The number under which the worker knows the profile, told now where it does not know it yet."""
        number = self._profiles.get(profile)
        if number is None:
            number = self._profiles[profile] = len(self._profiles)
            self._transport.write(frame(Kind.PROFILE, number, profile))
        return number

    def _tell(self, kind: Kind, stream: int) -> None:
        if self.is_open:
            self._transport.write(frame(kind, stream))


def not_reached(error: OSError) -> EngineError:
    """What it means that a worker's socket could not be connected to: its fault, or ours (as too many open files)."""
    if isinstance(error, ConnectionError | FileNotFoundError):
        return WorkerDied()
    return EngineError(f"cannot reach the model's worker: {error.strerror or error}")


class Channels:
    """The channels to all workers, by socket."""

    def __init__(self) -> None:
        self._open: dict[Path, Channel] = {}
        self._connecting: dict[Path, asyncio.Lock] = {}

    async def least_loaded(self, sockets: Sequence[Path]) -> Channel:
        """A channel to the API server process with the fewest streams.

        Raises WorkerDied where one does not listen, EngineError where this process cannot connect.
        """
        channels = [await self._connect(socket) for socket in sockets]
        if not channels:
            raise WorkerDied
        return min(channels, key=lambda channel: channel.load)

    def end(self, error: EngineError) -> None:
        """End all streams of all workers with this error."""
        for channel in self._open.values():
            channel.end(error)

    def close(self) -> None:
        """Close them all."""
        for channel in self._open.values():
            channel.close()
        self._open.clear()

    async def _connect(self, socket: Path) -> Channel:
        channel = self._open.get(socket)
        if channel is not None and channel.is_open:
            return channel
        async with self._connecting.setdefault(socket, asyncio.Lock()):
            channel = self._open.get(socket)
            if channel is not None and channel.is_open:
                return channel
            try:
                _, channel = await asyncio.get_running_loop().create_unix_connection(Channel, str(socket))
            except OSError as error:
                raise not_reached(error) from error
            self._open[socket] = channel
            return channel
