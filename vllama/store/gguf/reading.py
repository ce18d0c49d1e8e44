"""Contents of GGUF files: keys, and tensors as they are stored. They are mapped into memory and read when used."""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

from vllama.errors import StoreError
from vllama.store.gguf.header import TensorInfo, read_contents

Array = npt.NDArray[Any]

_REQUIRED = object()
_FLOATS: Mapping[GGMLQuantizationType, str] = {
    GGMLQuantizationType.F32: "<f4",
    GGMLQuantizationType.F16: "<f2",
    GGMLQuantizationType.BF16: "<u2",
    GGMLQuantizationType.F64: "<f8",
}
"""Types with one value per element, and how numpy reads them: the bits of a bfloat16 are an integer to it."""


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor of a GGUF file.

    `shape` is torch's: outermost dimension first. `blocks` is a matrix, one row for each row of the tensor: values
    for F32, F16, BF16 (16-bit integers with its bits) and F64, else bytes of quantized blocks. All dimensions except
    the innermost make up the rows; a vector is a column, so that its values can be reordered like rows.
    """

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    blocks: Array

    @property
    def is_quantized(self) -> bool:
        """Whether values are packed in blocks that share a scale."""
        return self.type not in _FLOATS

    def values(self, rows: slice | Array) -> Array:
        """Return these rows as 32-bit floats. Raises StoreError for types that gguf cannot decode."""
        blocks = np.ascontiguousarray(self.blocks[rows])
        try:
            if self.type is GGMLQuantizationType.BF16:
                return (blocks.astype(np.uint32) << 16).view(np.float32)
            if not self.is_quantized:
                return blocks.astype(np.float32)
            with np.errstate(invalid="ignore", over="ignore"):  # who uses the values checks them
                return np.asarray(dequantize(blocks, self.type), dtype=np.float32)
        except NotImplementedError:
            raise StoreError(f"{self.name} has type {self.type.name}, which gguf cannot decode") from None


class GgufFile:
    """A GGUF file for reading. Raises StoreError if it is damaged or one part of several."""

    def __init__(self, path: Path) -> None:
        contents = read_contents(path)
        self.keys: Mapping[str, Any] = contents.keys
        self.architecture = str(contents.keys.get("general.architecture", ""))
        if int(self.key("split.count", 1) or 1) > 1:
            raise StoreError("this is one part of a split GGUF file; merge the parts with `llama-gguf-split --merge`")
        data = np.memmap(path, dtype=np.uint8, mode="r")
        tensors: dict[str, GgufTensor] = {}
        for info in contents.tensors:
            if info.name in tensors:
                raise StoreError(f"the GGUF file has two tensors named {info.name}")
            tensors[info.name] = _tensor(data, info)
        self.tensors: Mapping[str, GgufTensor] = tensors

    def only(self, tensors: Mapping[str, GgufTensor]) -> GgufFile:
        """Return the file as if it had these tensors only."""
        part = copy(self)
        part.tensors = tensors
        return part

    def key(self, name: str, default: Any = _REQUIRED) -> Any:
        """Return the value of a key; "{arch}" in its name stands for the architecture.

        Raises StoreError if the key is missing and there is no default.
        """
        full = name.replace("{arch}", self.architecture)
        value = self.keys.get(full, default)
        if value is _REQUIRED:
            raise StoreError(f"the GGUF file lacks the key {full}")
        return value

    def layer_value(self, name: str, default: Any = _REQUIRED) -> Any:
        """Return the value of a key that may have one value for each layer, if all layers have the same.

        Raises StoreError if they differ.
        """
        value = self.key(name, default)
        if isinstance(value, list):
            different = set(value)
            if len(different) != 1:
                raise StoreError(f"the key {name.replace('{arch}', self.architecture)} differs between layers")
            (value,) = different
        return value


def _tensor(data: Array, info: TensorInfo) -> GgufTensor:
    try:
        kind = GGMLQuantizationType(info.type)
    except ValueError:
        raise StoreError(f"{info.name} has type {info.type}, which gguf does not know") from None
    block, block_bytes = GGML_QUANT_SIZES[kind]
    shape = info.shape or (1,)
    inner = 1 if len(shape) == 1 and kind in _FLOATS else shape[-1]
    if inner % block:
        raise StoreError(f"{info.name} has rows of {inner} values, which is no multiple of a block's {block}")
    elements = math.prod(shape)
    size = elements // block * block_bytes
    if info.start + size > data.size:
        raise StoreError(f"the GGUF file is incomplete: {info.name} ends after byte {data.size:,}. Download it again")
    row = inner // block * block_bytes
    blocks = data[info.start : info.start + size]
    if kind in _FLOATS:
        blocks, row = blocks.view(_FLOATS[kind]), inner
    return GgufTensor(info.name, shape, kind, blocks.reshape(elements // inner if inner else 0, row))
