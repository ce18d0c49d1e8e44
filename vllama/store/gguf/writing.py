"""Writing of safetensors shards: tensor by tensor, in parts of a few megabytes, so models of any size fit in memory.

The same tensors give the same bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from gguf import GGMLQuantizationType

from vllama.errors import StoreError
from vllama.store.gguf.json_files import write_json
from vllama.store.gguf.placing import PlacedTensor
from vllama.store.gguf.reading import Array

_PART = 16 << 20
"""Bytes of blocks, or decoded values, in memory at a time."""

_REPORT = 64 << 20
"""Bytes between two calls about progress."""

_SHARD = 5_000_000_000
"""Maximum bytes of a shard, unless one tensor is larger."""

_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "I8": 1, "U8": 1, "F8_E4M3": 1}

_KEPT = {GGMLQuantizationType.F32: "F32", GGMLQuantizationType.F16: "F16", GGMLQuantizationType.BF16: "BF16"}
"""Types that are written as they are."""


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """A tensor to write: `dtype` as safetensors spells it, and its little-endian bytes in parts."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    parts: Callable[[], Iterator[Array]]

    @property
    def size(self) -> int:
        """The number of bytes."""
        return math.prod(self.shape) * _BYTES[self.dtype]


def unpacked(placed: PlacedTensor) -> OutputTensor:
    """Return the tensor with values of their own: F32, F16 and BF16 as they are, all others rounded to bfloat16.

    A tensor of pieces with different types becomes bfloat16 as well, unless one is F32. Raises StoreError while it is
    written if a value is infinite or not a number.
    """
    kept = {_KEPT.get(piece.source.type, "BF16") for piece in placed.pieces}
    dtype = kept.pop() if len(kept) == 1 else "F32" if "F32" in kept else "BF16"

    def parts() -> Iterator[Array]:
        if placed.moves_rows_only and all(piece.source.type in _KEPT for piece in placed.pieces) and not kept:
            for _, blocks in placed.blocks(_PART):
                yield blocks
            return
        for values in placed.values(_PART // 4):
            if not np.isfinite(values).all():
                raise StoreError(
                    f"{placed.source.name} has values that are infinite or not a number; the file is damaged"
                )
            yield values if dtype == "F32" else values.astype(np.float16) if dtype == "F16" else to_bfloat16(values)

    return OutputTensor(placed.name, dtype, placed.shape, parts)


def to_bfloat16(values: Array) -> Array:
    """Round finite 32-bit floats to the bits of the nearest bfloat16, ties to even, as torch does."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def write_weights(tensors: Iterable[OutputTensor], destination: Path, progress: Callable[[int, int], object]) -> None:
    """Write the tensors to `model.safetensors` in the directory, or to numbered shards and their index.

    `progress` gets the bytes written and the total. Raises StoreError if two tensors have the same name.
    """
    shards = _shards(list(tensors))
    total = sum(tensor.size for shard in shards for tensor in shard)
    done = 0
    index: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors" if len(shards) > 1 else "model.safetensors"
        for tensor in shard:
            if tensor.name in index:
                raise StoreError(f"two tensors of the GGUF file become {tensor.name}")
            index[tensor.name] = name
        with (destination / name).open("xb") as file:
            file.write(_header(shard))
            for tensor in shard:
                for size in _write(tensor, file):
                    done += size
                    if done == total or done // _REPORT > (done - size) // _REPORT:
                        progress(done, total)
    if len(shards) > 1:
        record = {"metadata": {"total_size": total}, "weight_map": dict(sorted(index.items()))}
        write_json(destination / "model.safetensors.index.json", record)


def _shards(tensors: list[OutputTensor]) -> list[list[OutputTensor]]:
    shards: list[list[OutputTensor]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.size > _SHARD:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.size
    return shards


def _header(tensors: list[OutputTensor]) -> bytes:
    """Return length and JSON; safetensors aligns what follows to 8 bytes."""
    record: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for tensor in tensors:
        stop = start + tensor.size
        record[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [start, stop]}
        start = stop
    data = json.dumps(record, separators=(",", ":")).encode()
    data += b" " * (-len(data) % 8)
    return len(data).to_bytes(8, "little") + data


def _write(tensor: OutputTensor, file: BinaryIO) -> Iterator[int]:
    """Write the parts and yield their sizes."""
    written = 0
    for part in tensor.parts():
        data = np.ascontiguousarray(part).view(np.uint8).reshape(-1)
        file.write(data.data)
        written += data.size
        yield data.size
    if written != tensor.size:
        raise StoreError(f"{tensor.name} has {written} bytes instead of {tensor.size}")
