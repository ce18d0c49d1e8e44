"""A checked request with images, as the gateway hands it to a worker: the images go as they are, not as base64.

The worker neither checks the request again nor decodes its images. Text alone goes as the client sent it: building the
request from a record takes as long as parsing it (20 µs each), so there is nothing to gain.

The bytes are a JSON record and then the images, each of these parts after its length (u32, little endian). The record
has the fields of the request's class; in place of an image it has the image's index.
"""

from __future__ import annotations

import struct
from typing import Any

import orjson

from vllama.ollama.requests import ChatRequest, GenerateRequest, Message, ToolCall

_LENGTH = struct.Struct("<I")


def encode(request: GenerateRequest | ChatRequest) -> bytes | None:
    """Return the request as bytes; None if orjson cannot write it, for example because it is nested too deeply."""
    images: list[bytes] = []

    def index_of(image: Any) -> int:
        if not isinstance(image, bytes):
            raise TypeError
        images.append(image)
        return len(images) - 1

    try:
        record = orjson.dumps(request, default=index_of)
    except TypeError:
        return None
    parts = [record, *images]
    return b"".join(piece for part in parts for piece in (_LENGTH.pack(len(part)), part))


def decode_generate(data: bytes) -> GenerateRequest:
    """Read a request of `/api/generate` that `encode` wrote."""
    record, images = _parts(data)
    record["images"] = tuple(images)
    record["context"] = tuple(record["context"])
    return GenerateRequest(**record)


def decode_chat(data: bytes) -> ChatRequest:
    """Read a request of `/api/chat` that `encode` wrote."""
    record, images = _parts(data)
    for message in record["messages"]:
        message["images"] = tuple(images[index] for index in message["images"])
        message["tool_calls"] = tuple(ToolCall(**call) for call in message["tool_calls"])
    record["messages"] = tuple(Message(**message) for message in record["messages"])
    record["tools"] = tuple(record["tools"])
    return ChatRequest(**record)


def _parts(data: bytes) -> tuple[dict[str, Any], list[bytes]]:
    """Return the record and the images."""
    parts, position = [], 0
    while position < len(data):
        (length,) = _LENGTH.unpack_from(data, position)
        position += _LENGTH.size
        parts.append(data[position : position + length])
        position += length
    return orjson.loads(parts[0]), parts[1:]
