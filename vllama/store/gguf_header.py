"""What a GGUF file says of itself, read from its first pages: enough to know whether it can be converted."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from vllama.errors import StoreError

ARCHITECTURES = (
    "bloom", "falcon", "gemma2", "gemma3", "gpt-oss", "gpt2", "lfm2", "llama", "mamba", "minimax-m2", "nemotron",
    "phi3", "qwen2", "qwen2moe", "qwen3", "qwen3moe", "stablelm", "starcoder2",
)  # fmt: skip
"""Values of `general.architecture` that transformers can turn into weights of a language model."""

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MOST_KEYS, _MOST_TENSORS, _MOST_DIMENSIONS, _LONGEST_TEXT = 1 << 16, 1 << 20, 4, 64 << 20


@dataclass(frozen=True, slots=True)
class Header:
    """The architecture, whether there are keys of a vision tower, and how many values all tensors have."""

    architecture: str
    has_vision: bool
    parameters: int


def check_convertible(path: Path) -> None:
    """Raise StoreError, which says why, where the file cannot be converted to a snapshot."""
    header = read_header(path)
    if header.architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise StoreError(
            f"GGUF files of architecture '{header.architecture}' cannot be converted; those of {known} can"
        )
    if header.has_vision:
        raise StoreError("it takes images, and GGUF files with a vision tower cannot be converted")


def read_header(path: Path) -> Header:
    """Read all but the tensors themselves. Raises StoreError where that is no GGUF file."""
    try:
        with path.open("rb") as file:
            return _read(file)
    except (OSError, struct.error, ValueError, MemoryError) as error:
        raise StoreError(f"not a GGUF file that can be read: {error}") from error


def _read(file: BinaryIO) -> Header:
    if file.read(4) != _MAGIC:
        raise ValueError("it does not begin with 'GGUF'")
    (version,) = _unpack(file, "I")
    if version not in _VERSIONS:
        raise ValueError(f"its version is {version}, known are {_VERSIONS}")
    tensors, keys = _unpack(file, "QQ")
    if keys > _MOST_KEYS or tensors > _MOST_TENSORS:
        raise ValueError(f"it has {keys} keys and {tensors} tensors")
    architecture, has_vision = "", False
    for key, value in _pairs(file, keys):
        if key == "general.architecture" and isinstance(value, str):
            architecture = value
        has_vision = has_vision or ".vision." in key
    return Header(architecture, has_vision, sum(_elements(file) for _ in range(tensors)))


def _elements(file: BinaryIO) -> int:
    """How many values the next tensor has."""
    _skip_text(file)
    (dimensions,) = _unpack(file, "I")
    if dimensions > _MOST_DIMENSIONS:
        raise ValueError(f"it holds a tensor of {dimensions} dimensions")
    *shape, _type, _offset = _unpack(file, f"{dimensions}QIQ")
    return math.prod(shape)


def _pairs(file: BinaryIO, count: int) -> Iterator[tuple[str, str | None]]:
    """All keys; of the values, only texts."""
    for _ in range(count):
        key = _text(file)
        (kind,) = _unpack(file, "I")
        if kind == _STRING:
            yield key, _text(file)
        elif kind == _ARRAY:
            of, length = _unpack(file, "IQ")
            if of == _STRING:
                for _ in range(length):
                    _skip_text(file)
            else:
                file.seek(length * _size(of), 1)
            yield key, None
        else:
            file.seek(_size(kind), 1)
            yield key, None


def _size(kind: int) -> int:
    if kind not in _SCALARS:
        raise ValueError(f"it holds a value of the unknown type {kind}")
    return struct.calcsize(f"<{_SCALARS[kind]}")


def _text(file: BinaryIO) -> str:
    (length,) = _unpack(file, "Q")
    if length > _LONGEST_TEXT:
        raise ValueError(f"it holds a text of {length} bytes")
    data = file.read(length)
    if len(data) < length:
        raise ValueError("it ends within its header")
    return data.decode(errors="replace")


def _skip_text(file: BinaryIO) -> None:
    (length,) = _unpack(file, "Q")
    file.seek(length, 1)


def _unpack(file: BinaryIO, layout: str) -> tuple[int, ...]:
    return struct.unpack(f"<{layout}", file.read(struct.calcsize(f"<{layout}")))
