"""Many streams on one Unix connection: the frames between gateway and worker.

A step of the engine yields one token for every running request. Over HTTP that is a write, a wake-up and a read for
each of them; here all that one turn of the event loop produces goes as one write (docs/architecture.md has the
figures). A frame is a head (payload length in bytes, kind, stream number; little endian) and its payload.

    gateway → worker   PROFILE   what the worker is told of a model, under a number in place of the stream's
                       OPEN      received (monotonic ns, u64), number of the profile (u32), length of the path (u8),
                                 path, request body
                       CANCEL    nobody listens to the stream any more
                       PAUSE, RESUME   the client is slower than the model; it has caught up
                       PULSE     is the engine alive? `stream` numbers the question
    worker → gateway   REPLY     status (u16), length of the content type (u8), content type, whole body
                       START     status (u16), length of the content type (u8), content type
                       DATA      a piece of the body
                       LAST      the last piece of the body, which may be empty
                       PULSE     the engine has answered
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum

_HEAD = struct.Struct("<IBI")
_OPEN = struct.Struct("<QIB")
_REPLY = struct.Struct("<HB")


class Kind(IntEnum):
    """What a frame says."""

    OPEN = 1
    CANCEL = 2
    PAUSE = 3
    RESUME = 4
    REPLY = 5
    START = 6
    DATA = 7
    LAST = 8
    PROFILE = 9
    PULSE = 10


def frame(kind: Kind, stream: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return _HEAD.pack(len(payload), kind, stream) + payload


def open_frame(stream: int, path: str, received: int, profile: int, body: bytes) -> bytes:
    """The frame that begins a stream; `profile` is a number that a PROFILE frame gave out before."""
    return frame(Kind.OPEN, stream, _OPEN.pack(received, profile, len(path)) + path.encode() + body)


def parse_open(payload: bytes) -> tuple[str, int, int, bytes]:
    """Path, time of receipt in monotonic ns, number of the profile, and body of an OPEN frame."""
    received, profile, length = _OPEN.unpack_from(payload)
    end = _OPEN.size + length
    return payload[_OPEN.size : end].decode(), received, profile, payload[end:]


def reply_frame(kind: Kind, stream: int, status: int, content_type: str, body: bytes = b"") -> bytes:
    """A REPLY or START frame."""
    return frame(kind, stream, _REPLY.pack(status, len(content_type)) + content_type.encode() + body)


def parse_reply(payload: bytes) -> tuple[int, bytes, bytes]:
    """Status, content type and body of a REPLY or START frame."""
    status, length = _REPLY.unpack_from(payload)
    end = _REPLY.size + length
    return status, payload[_REPLY.size : end], payload[end:]


class FrameReader:
    """Cuts a byte stream into frames."""

    __slots__ = ("_needed", "_rest")

    def __init__(self) -> None:
        self._rest = bytearray()
        self._needed = 0

    def feed(self, data: bytes) -> Iterator[tuple[int, int, bytes]]:
        """Take bytes in; yield (kind, stream, payload) of every frame that is whole now. Exhaust it each time."""
        if self._rest:
            self._rest += data
            if len(self._rest) < self._needed:
                return
            data = bytes(self._rest)
            self._rest.clear()
        position, end = 0, len(data)
        self._needed = 0
        while end - position >= _HEAD.size:
            length, kind, stream = _HEAD.unpack_from(data, position)
            begin = position + _HEAD.size
            if end - begin < length:
                self._needed = _HEAD.size + length
                break
            position = begin + length
            yield kind, stream, data[begin:position]
        if position < end:
            self._rest += data[position:]
