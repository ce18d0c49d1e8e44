"""Many streams on one Unix connection: the frames between gateway and worker.

An engine step yields one token for every running request. Over HTTP that takes a write, a wake-up and a read for
each request; here everything that one turn of the event loop produces is sent in one write (docs/architecture.md has
the figures). A frame is a header (payload length in bytes, kind, stream number; little endian) and a payload.

    gateway → worker   PROFILE   the model's profile, with the profile's number in place of the stream number; without
                                 a payload the worker forgets that profile
                       OPEN      received (monotonic ns, u64), number of the profile (u32), form of the body (u8),
                                 length of the path (u8), path, request body
                       CANCEL    the client disconnected from the stream
                       PAUSE, RESUME   the client is slower than the model; the client has caught up
                       PULSE     asks whether the engine is alive; `stream` is the number of the question
                       HEARD     asks whether the process that listens is alive, whatever its engine does
    worker → gateway   REPLY     status (u16), length of the content type (u8), content type, whole body
                       START     status (u16), length of the content type (u8), content type
                       DATA      a piece of the body
                       LAST      the last piece of the body, which may be empty
                       TOKENS    the token counts of a stream (vllama.protocol.token_counts), before its REPLY or LAST,
                                 or after its CANCEL
                       HEARD     the process is alive
                       PULSE     the engine is alive
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

_HEAD = struct.Struct("<IBI")
_OPEN = struct.Struct("<QIBB")
_REPLY = struct.Struct("<HB")


class Kind(IntEnum):
    """The kind of a frame."""

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
    HEARD = 11
    TOKENS = 12


class Form(IntEnum):
    """Format of a request body, and whether the gateway has checked it."""

    UNCHECKED = 0
    """JSON that the worker has to check."""
    CHECKED = 1
    """JSON that the gateway has checked."""
    RECORD = 2
    """A checked request with images (vllama.protocol.checked_record)."""


def frame(kind: Kind, stream: int, payload: bytes = b"") -> bytes:
    """Encode one frame."""
    return _HEAD.pack(len(payload), kind, stream) + payload


def open_frame(stream: int, path: str, received: int, profile: int, body: bytes, *, form: Form) -> bytes:
    """Return the frame that begins a stream; `profile` is a number that a PROFILE frame gave out before."""
    return frame(Kind.OPEN, stream, _OPEN.pack(received, profile, form, len(path)) + path.encode() + body)


class Opened(NamedTuple):
    """Content of an OPEN frame; `received` is in monotonic ns, `profile` is a number that a PROFILE frame assigned."""

    path: str
    received: int
    profile: int
    form: Form
    body: bytes


def parse_open(payload: bytes) -> Opened:
    """Take the payload of an OPEN frame apart."""
    received, profile, form, length = _OPEN.unpack_from(payload)
    end = _OPEN.size + length
    return Opened(payload[_OPEN.size : end].decode(), received, profile, Form(form), payload[end:])


def reply_frame(kind: Kind, stream: int, status: int, content_type: str, body: bytes = b"") -> bytes:
    """Encode a REPLY or START frame."""
    return frame(kind, stream, _REPLY.pack(status, len(content_type)) + content_type.encode() + body)


def parse_reply(payload: bytes) -> tuple[int, bytes, bytes]:
    """Decode a REPLY or START frame: status, content type and body."""
    status, length = _REPLY.unpack_from(payload)
    end = _REPLY.size + length
    return status, payload[_REPLY.size : end], payload[end:]


class FrameReader:
    """Splits a byte stream into frames."""

    __slots__ = ("_needed", "_rest")

    def __init__(self) -> None:
        self._rest = bytearray()
        self._needed = 0

    def feed(self, data: bytes) -> Iterator[tuple[int, int, bytes]]:
        """Add bytes and yield (kind, stream, payload) of each complete frame; exhaust the iterator each time."""
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
