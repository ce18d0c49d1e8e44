"""Headers of GGUF files: keys and tensors, checked and bounded before any library sees the file.

The gateway reads headers to decide whether a file can be converted, so this module needs neither numpy nor gguf.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from vllama.errors import StoreError
from vllama.store.foreign_files import open_regular
from vllama.store.gguf.architectures.names import (
    ARCHITECTURES,
    PROJECTOR,
    REFUSED,
    VISION_INSIDE,
    VISION_TEXTS,
    projector_kind,
)

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MOST_KEYS, _MOST_TENSORS, _MOST_DIMENSIONS, _LONGEST_TEXT = 1 << 16, 1 << 17, 4, 64 << 20
_MOST_ITEMS = 1 << 24
"""Items of an array; the largest vocabularies have 300,000 tokens and 600,000 merges."""
_SMALLEST_KEY, _SMALLEST_TENSOR, _SMALLEST_TEXT = 8 + 4 + 1, 8 + 4 + 4 + 8, 8
"""Bytes that a key, a tensor and a string take in the header at least."""
_CHECKED_TEXT = 1 << 16
"""Bytes up to which a string is read without a look at the size of the file; a vocabulary has very many short ones."""

_ALIGNMENT = 32
"""Alignment of tensors in bytes, unless the key `general.alignment` has another."""


@dataclass(frozen=True, slots=True)
class Header:
    """Architecture, presence of vision tower keys, and kind of a projector."""

    architecture: str
    has_vision: bool
    projector: str = ""

    @property
    def is_projector(self) -> bool:
        """Whether the file has a vision tower only: llama.cpp's "mmproj"."""
        return self.architecture == PROJECTOR


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor of the file: its shape as torch has it, outermost dimension first, and its first byte in the file."""

    name: str
    shape: tuple[int, ...]
    type: int
    start: int


@dataclass(frozen=True, slots=True)
class Contents:
    """All keys of the file with their values, and all its tensors in order."""

    keys: dict[str, Any]
    tensors: tuple[TensorInfo, ...]


def check_convertible(path: Path, projector: Path | None = None) -> None:
    """Raise StoreError with the reason if the file cannot be converted to a snapshot, with its projector if any."""
    header = read_header(path)
    name = header.architecture
    if name in REFUSED:
        raise StoreError(f"cannot convert GGUF files of architecture '{name}': {REFUSED[name]}")
    if header.is_projector:
        raise StoreError("the GGUF file has a vision tower only (mmproj); name the file of the text model, too")
    if name not in ARCHITECTURES:
        raise StoreError(f"cannot convert GGUF files of architecture '{name}'; supported: {', '.join(ARCHITECTURES)}")
    if header.has_vision and name not in VISION_INSIDE:
        raise StoreError(
            f"cannot convert the vision tower in GGUF files of architecture '{name}'; pull a safetensors repository "
            "of the model"
        )
    if projector is not None:
        check_projector(path, projector)


def check_projector(path: Path, projector: Path) -> None:
    """Raise StoreError with the reason if `projector` cannot be converted as the vision tower of this GGUF file."""
    architecture, header = read_header(path).architecture, read_header(projector)
    if not header.is_projector:
        raise StoreError(f"the projector (mmproj) is a file of architecture '{header.architecture}'")
    if architecture not in VISION_TEXTS.get(header.projector, ()):
        raise StoreError(
            f"cannot convert a projector (mmproj) of kind '{header.projector}' for architecture '{architecture}'; "
            f"supported: {', '.join(VISION_TEXTS)}. Pull a safetensors repository of the model"
        )


def read_header(path: Path) -> Header:
    """Read the facts that decide whether the file can be converted. Raises StoreError if it is not a GGUF file."""
    contents = _read(path, arrays=False)
    architecture = contents.keys.get("general.architecture", "")
    has_vision = any(".vision." in key for key in contents.keys)
    return Header(architecture if isinstance(architecture, str) else "", has_vision, projector_kind(contents.keys))


def read_contents(path: Path) -> Contents:
    """Read all keys, with arrays such as the vocabulary, and all tensors. Raises StoreError if it is not a GGUF."""
    return _read(path, arrays=True)


def _read(path: Path, *, arrays: bool) -> Contents:
    try:
        with open_regular(path) as file:
            return _contents(file, arrays=arrays)
    except (OSError, struct.error, ValueError, OverflowError, MemoryError) as error:
        raise StoreError(f"cannot read the GGUF file: {error}") from error


def _contents(file: BinaryIO, *, arrays: bool) -> Contents:
    if file.read(4) != _MAGIC:
        raise ValueError("it does not begin with 'GGUF'")
    (version,) = _unpack(file, "I")
    if version not in _VERSIONS:
        raise ValueError(f"its version is {version}; supported versions: {_VERSIONS}")
    tensors, keys = _unpack(file, "QQ")
    if keys > _MOST_KEYS or tensors > _MOST_TENSORS:
        raise ValueError(f"it has an implausible number of keys ({keys}) or tensors ({tensors})")
    _check_holds(file, keys * _SMALLEST_KEY + tensors * _SMALLEST_TENSOR)
    values = dict(_pairs(file, keys, arrays=arrays))
    infos = [_tensor(file) for _ in range(tensors)]
    alignment = values.get("general.alignment", _ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise ValueError(f"its alignment is {alignment}")
    start = -(-file.tell() // alignment) * alignment
    placed = (TensorInfo(name, shape, kind, start + offset) for name, shape, kind, offset in infos)
    return Contents(values, tuple(placed))


def _tensor(file: BinaryIO) -> tuple[str, tuple[int, ...], int, int]:
    """Return name, shape, type and offset of the next tensor."""
    name = _name(file)
    (dimensions,) = _unpack(file, "I")
    if dimensions > _MOST_DIMENSIONS:
        raise ValueError(f"it has a tensor with {dimensions} dimensions")
    *shape, kind, offset = _unpack(file, f"{dimensions}QIQ")
    return name, tuple(reversed(shape)), kind, offset


def _pairs(file: BinaryIO, count: int, *, arrays: bool) -> Iterator[tuple[str, Any]]:
    """Yield all keys with their values; None instead of an array, and "" instead of a long text, unless `arrays`."""
    for _ in range(count):
        key = _name(file)
        (kind,) = _unpack(file, "I")
        if kind == _STRING:
            yield key, _text(file, skipped_beyond=None if arrays else _CHECKED_TEXT)
        elif kind == _ARRAY:
            if not arrays:
                _skip_array(file)
            yield key, _array(file) if arrays else None
        else:
            (value,) = _unpack(file, _scalar(kind))
            yield key, value


def _array(file: BinaryIO) -> list[Any]:
    of, length = _unpack(file, "IQ")
    _check_array(file, of, length)
    if of == _STRING:
        return [_text(file) for _ in range(length)]
    return list(_unpack(file, f"{length}{_scalar(of)}"))


def _skip_array(file: BinaryIO) -> None:
    of, length = _unpack(file, "IQ")
    _check_array(file, of, length)
    if of == _STRING:
        for _ in range(length):
            _skip_text(file)
    else:
        file.seek(length * struct.calcsize(f"<{_scalar(of)}"), 1)


def _check_array(file: BinaryIO, of: int, length: int) -> None:
    """Raise ValueError unless the rest of the file can hold so many items, before any of them is read."""
    if length > _MOST_ITEMS:
        raise ValueError(f"it has an array of {length} values")
    _check_holds(file, length * (_SMALLEST_TEXT if of == _STRING else struct.calcsize(f"<{_scalar(of)}")))


def _check_holds(file: BinaryIO, size: int) -> None:
    if size > os.fstat(file.fileno()).st_size - file.tell():
        raise ValueError(f"its header names {size:,} bytes that the file does not hold")


def _scalar(kind: int) -> str:
    if kind not in _SCALARS:
        raise ValueError(f"it has a value of unknown type {kind}")
    return _SCALARS[kind]


def _name(file: BinaryIO) -> str:
    """Return the name of a key or a tensor."""
    name = _text(file, skipped_beyond=_CHECKED_TEXT)
    if not name:
        raise ValueError("it has a key or a tensor without a name, or with one that is too long")
    return name


def _text(file: BinaryIO, skipped_beyond: int | None = None) -> str:
    length = _length(file)
    if skipped_beyond is not None and length > skipped_beyond:
        _check_holds(file, length)
        file.seek(length, 1)
        return ""
    if length > _LONGEST_TEXT:
        raise ValueError(f"it has a string of {length} bytes")
    if length > _CHECKED_TEXT:
        _check_holds(file, length)
    data = file.read(length)
    if len(data) < length:
        raise ValueError("its header is truncated")
    return data.decode(errors="replace")


def _skip_text(file: BinaryIO) -> None:
    file.seek(_length(file), 1)


def _length(file: BinaryIO) -> int:
    """Return the length of the next string; a vocabulary has hundreds of thousands, and struct takes twice as long."""
    data = file.read(8)
    if len(data) < 8:
        raise ValueError("its header is truncated")
    return int.from_bytes(data, "little")


def _unpack(file: BinaryIO, layout: str) -> tuple[Any, ...]:
    return struct.unpack(f"<{layout}", file.read(struct.calcsize(f"<{layout}")))
