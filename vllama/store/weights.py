"""Headers of safetensors files: names, types and shapes of tensors, without torch."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from vllama.errors import ManifestCorrupt
from vllama.store.foreign_files import open_regular

_LARGEST_HEADER = 100_000_000
"""Maximum bytes of a header, the limit of the safetensors library itself."""

_MOST_DIMENSIONS, _MOST_ELEMENTS, _MOST_BITS = 16, 1 << 48, 64

REPACKED = "vllama_gguf"
"""The `quant_method` of weights that were repacked from a GGUF file; vllama.worker.repacked_weights serves them."""

_DTYPE_LEVELS = {"F8_E4M3": "FP8", "F8_E5M2": "FP8", "F64": "F64", "F32": "F32", "F16": "F16", "BF16": "BF16"}

# Auxiliary tensors of quantized formats, by the last part of their names.
_BESIDE_THE_WEIGHTS = (
    "scale",
    "scales",
    "scale_inv",
    "scale_2",
    "zeros",
    "zero_point",
    "g_idx",
    "weight_shape",
    "absmax",
    "quant_map",
    "quant_state__bitsandbytes__nf4",
    "quant_state__bitsandbytes__fp4",
)


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of a checkpoint; `dtype` is spelled as in safetensors ("BF16", "F32", "I32")."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """The number of values."""
        return math.prod(self.shape)


def read_tensors(files: Iterable[Path]) -> tuple[Tensor, ...]:
    """Return the tensors of these files in order. Raises ManifestCorrupt, which names the damaged file."""
    return tuple(tensor for file in files for tensor in _read_header(file))


def parameter_count(tensors: Iterable[Tensor], quantization: Mapping[str, Any]) -> int:
    """Return the model's number of parameters; `quantization` is config.json's `quantization_config`, or empty.

    Quantized formats pack several values into one integer: these are unpacked, and the scales
    next to them are not counted.
    """
    if not quantization:
        return sum(tensor.elements for tensor in tensors)
    bits = quantization_bits(quantization) or 4
    packing = {"I32": 32 // bits, "U8": max(8 // bits, 1)}
    return sum(
        tensor.elements * packing.get(tensor.dtype, 1)
        for tensor in tensors
        if not tensor.name.endswith(_BESIDE_THE_WEIGHTS)
    )


_PACKED, _SCALES, _MINIMUMS = ".weight_packed", ".weight_scale", ".weight_minimum"


def joined_tensors(tensors: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """Return the tensors as their GGUF file has them, where that was repacked: one for words, scales and minimums.

    A word of 32 bits has eight weights of 4 bits, in groups of 32, or four of 8 bits, in groups of 32 or 64
    (vllama.store.gguf.repacking). Other tensors stay as they are.
    """
    known = {tensor.name: tensor for tensor in tensors}
    return tuple(
        _joined(tensor, known)
        for tensor in known.values()
        if not (tensor.name.endswith((_SCALES, _MINIMUMS)) and tensor.name.rpartition(".")[0] + _PACKED in known)
    )


def packed_bytes(tensors: Iterable[Tensor], item: int) -> int | None:
    """Return the bytes in the memory of a CPU of weights that stay packed, beside others of `item` bytes.

    Experts are unpacked there (vllama.worker.repacked_experts). None if no other weights are packed.
    """
    known = {tensor.name: tensor for tensor in tensors}
    if not any(name.endswith(_PACKED) and not _is_of_expert(name) for name in known):
        return None
    sizes = {"I32": 4, "F16": 2}
    parts = (_PACKED, _SCALES, _MINIMUMS)
    total = 0
    for tensor in known.values():
        is_part = tensor.name.endswith(parts)
        if is_part and not _is_of_expert(tensor.name):
            total += tensor.elements * sizes.get(tensor.dtype, item)
        elif not is_part or tensor.name.endswith(_PACKED):
            total += _joined(tensor, known).elements * item
    return total


def _is_of_expert(name: str) -> bool:
    return ".experts." in name


def _joined(tensor: Tensor, known: Mapping[str, Tensor]) -> Tensor:
    name = tensor.name.removesuffix(_PACKED)
    scales = known.get(name + _SCALES)
    if name == tensor.name or scales is None or len(tensor.shape) != 2 or scales.shape[-1] == 0:
        return tensor
    rows, words = tensor.shape
    bits = 4 if words // scales.shape[-1] == 4 else 8
    return Tensor(f"{name}.weight", f"INT{bits}", (rows, words * 32 // bits))


def quantization_level(tensors: Iterable[Tensor], quantization: Mapping[str, Any]) -> str:
    """Return the quantization method ("FP8", "AWQ", "GPTQ-INT4"), or else the type of most weights ("BF16")."""
    method, bits = str(quantization.get("quant_method", "")).lower(), quantization_bits(quantization)
    if method == "gptq":
        return f"GPTQ-INT{bits or 4}"
    if method == "compressed-tensors":
        form = str(quantization.get("format", ""))
        if form.startswith(("nvfp4", "mxfp4")):
            return form[:5].upper()
        return f"FP{bits or 8}" if form.startswith("float") else f"INT{bits or 8}"
    if method.startswith("modelopt"):
        return str(quantization.get("quant_algo") or "FP8")
    if method == "bitsandbytes":
        return f"BNB-INT{bits}" if bits == 8 else "BNB-4BIT"
    if method:
        return method.replace("_", "-").upper()
    elements: Counter[str] = Counter()
    for tensor in tensors:
        elements[tensor.dtype] += tensor.elements
    most = max(elements, key=lambda dtype: elements[dtype], default="")
    return _DTYPE_LEVELS.get(most, most)


def quantization_bits(quantization: Mapping[str, Any]) -> int | None:
    """Return the bits per weight that a `quantization_config` states."""
    if quantization.get("load_in_4bit"):
        return 4
    if quantization.get("load_in_8bit"):
        return 8
    groups = quantization.get("config_groups")  # compressed-tensors
    weights = (
        [group.get("weights") for group in groups.values() if isinstance(group, dict)]
        if isinstance(groups, dict)
        else []
    )
    candidates = [quantization.get("bits"), quantization.get("w_bit")]
    candidates += [weight.get("num_bits") for weight in weights if isinstance(weight, dict)]
    return next((bits for bits in candidates if isinstance(bits, int) and 0 < bits <= _MOST_BITS), None)


def human_count(count: int) -> str:
    """Return a number of parameters in Ollama's style: "134.52M", "7.6B", "137M"."""
    if count >= 1_000_000_000:
        return f"{count // 1_000_000_000}B" if count % 1_000_000_000 == 0 else f"{count / 1e9:.1f}B"
    if count >= 1_000_000:
        return f"{count // 1_000_000}M" if count % 1_000_000 == 0 else f"{count / 1e6:.2f}M"
    return f"{count / 1e3:.0f}K" if count >= 1_000 else str(count)


def _shape(extents: list[Any]) -> tuple[int, ...]:
    """Return the shape of a tensor. Raises ValueError if no file could hold it."""
    shape = tuple(int(extent) for extent in extents)
    if len(shape) > _MOST_DIMENSIONS or min(shape, default=0) < 0 or math.prod(shape) > _MOST_ELEMENTS:
        raise ValueError
    return shape


def _read_header(path: Path) -> list[Tensor]:
    """Read a header: 8 bytes of length (little endian) and that much JSON."""
    try:
        with open_regular(path) as file:
            length = int.from_bytes(file.read(8), "little")
            size = os.fstat(file.fileno()).st_size
            is_whole = length <= min(_LARGEST_HEADER, size - 8)
            header = orjson.loads(file.read(length) if is_whole else b"")
        header.pop("__metadata__", None)
        end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
        tensors = [Tensor(name, str(entry["dtype"]), _shape(entry["shape"])) for name, entry in header.items()]
    except OSError as error:
        raise ManifestCorrupt(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
        raise ManifestCorrupt(f"{path} is not a safetensors file") from error
    if size != end:
        raise ManifestCorrupt(f"{path} is incomplete: it has {size} bytes instead of {end}; pull the model again")
    return tensors
