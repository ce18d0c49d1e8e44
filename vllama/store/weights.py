"""What safetensors files say of themselves: names, types and shapes of the tensors; no torch needed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from vllama.errors import ManifestCorrupt

_LARGEST_HEADER = 100_000_000
"""Bytes; the limit of the safetensors library itself."""

_DTYPE_LEVELS = {"F8_E4M3": "FP8", "F8_E5M2": "FP8", "F64": "F64", "F32": "F32", "F16": "F16", "BF16": "BF16"}

# The values that quantised formats keep beside the weights, by the last part of the tensor's name.
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
    """One tensor of a checkpoint; `dtype` is spelled as in safetensors ("BF16", "F32", "I32")."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """How many values it holds."""
        return math.prod(self.shape)


def read_tensors(files: Iterable[Path]) -> tuple[Tensor, ...]:
    """Return the tensors of these files in order. Raises ManifestCorrupt naming the file that is damaged."""
    return tuple(tensor for file in files for tensor in _read_header(file))


def parameter_count(tensors: Iterable[Tensor], quantization: Mapping[str, Any]) -> int:
    """Count the parameters of the model; `quantization` is config.json's `quantization_config`, or empty.

    Quantised formats pack several values into one integer: these are unpacked, and the scales
    beside them are not counted.
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


def quantization_level(tensors: Iterable[Tensor], quantization: Mapping[str, Any]) -> str:
    """Return "BF16", "FP8", "AWQ", "GPTQ-INT4", …: the method, or else the type of most weights."""
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
    groups = quantization.get("config_groups") or {}  # compressed-tensors
    candidates = [quantization.get("bits"), quantization.get("w_bit")]
    candidates += [(group.get("weights") or {}).get("num_bits") for group in groups.values()]
    return next((bits for bits in candidates if isinstance(bits, int) and bits > 0), None)


def human_count(count: int) -> str:
    """Return a number of parameters in Ollama's style: "134.52M", "7.6B", "137M"."""
    if count >= 1_000_000_000:
        return f"{count // 1_000_000_000}B" if count % 1_000_000_000 == 0 else f"{count / 1e9:.1f}B"
    if count >= 1_000_000:
        return f"{count // 1_000_000}M" if count % 1_000_000 == 0 else f"{count / 1e6:.2f}M"
    return f"{count / 1e3:.0f}K" if count >= 1_000 else str(count)


def _read_header(path: Path) -> list[Tensor]:
    """Read 8 bytes of length (little endian) and that much JSON: the format of safetensors."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = orjson.loads(file.read(length) if length <= _LARGEST_HEADER else b"")
        header.pop("__metadata__", None)
        end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
        tensors = [
            Tensor(name, str(entry["dtype"]), tuple(int(extent) for extent in entry["shape"]))
            for name, entry in header.items()
        ]
        size = path.stat().st_size
    except OSError as error:
        raise ManifestCorrupt(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ManifestCorrupt(f"{path} is no safetensors file") from error
    if size != end:
        raise ManifestCorrupt(f"{path} is not whole: it has {size} bytes and should have {end}")
    return tensors
