"""Simple quantizers for Q4_K and Q6_K, which the `gguf` library only decodes, and files with the mix of Q4_K_M."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType

Array = npt.NDArray[Any]


def q4_k(values: Array) -> Array:
    """Quantize rows of 32-bit floats to Q4_K: from the smallest value of 32 to the largest in 15 steps."""
    groups = values.reshape(-1, 8, 32)
    low = np.minimum(groups.min(axis=2), 0)
    steps = (groups.max(axis=2).clip(0) - low) / 15
    d, dmin = _halves(steps.max(axis=1) / 63), _halves(-low.min(axis=1) / 63)
    scales = _ratio(steps, d[:, None]).clip(0, 63).astype(np.uint8)
    minimums = _ratio(-low, dmin[:, None]).clip(0, 63).astype(np.uint8)
    offsets = dmin[:, None, None].astype(np.float32) * minimums[..., None]
    codes = _ratio(groups + offsets, d[:, None, None].astype(np.float32) * scales[..., None])
    codes = codes.clip(0, 15).astype(np.uint8).reshape(-1, 4, 2, 32)
    packed = np.concatenate(
        [
            scales[:, :4] | scales[:, 4:] >> 4 << 6,
            minimums[:, :4] | minimums[:, 4:] >> 4 << 6,
            scales[:, 4:] & 15 | minimums[:, 4:] << 4,
        ],
        axis=1,
    )
    data = (codes[:, :, 0] | codes[:, :, 1] << 4).reshape(-1, 128)
    blocks: Array = np.concatenate([_bytes(d), _bytes(dmin), packed, data], axis=1)
    return blocks.reshape(values.shape[0], -1)


def q6_k(values: Array) -> Array:
    """Quantize rows of 32-bit floats to Q6_K: 31 steps on each side of zero."""
    groups = values.reshape(-1, 16, 16)
    steps = np.abs(groups).max(axis=2) / 31
    d = _halves(steps.max(axis=1) / 127)
    scales = _ratio(steps, d[:, None]).clip(0, 127).astype(np.int8)
    codes: Array = _ratio(groups, d[:, None, None].astype(np.float32) * scales[..., None]).clip(-32, 31)
    codes = (codes + 32).astype(np.uint8).reshape(-1, 2, 4, 32)
    low = codes & 15
    halves = np.stack([low[:, :, 0] | low[:, :, 2] << 4, low[:, :, 1] | low[:, :, 3] << 4], axis=2)
    high = codes >> 4
    high = high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6
    parts = [halves.reshape(-1, 128), high.reshape(-1, 64), scales.view(np.uint8), _bytes(d)]
    blocks: Array = np.concatenate(parts, axis=1)
    return blocks.reshape(values.shape[0], -1)


_QUANTIZERS: dict[GGMLQuantizationType, Callable[[Array], Array]] = {
    GGMLQuantizationType.Q4_K: q4_k,
    GGMLQuantizationType.Q6_K: q6_k,
}

Choose = Callable[[str, Array, int], GGMLQuantizationType | None]
"""From the name and the values of a tensor, and the number of layers, to its type; None for 32-bit floats."""


def requantize(source: Path, target: Path, choose: Choose | None = None) -> None:
    """Write a GGUF file with the keys of `source`, whose float matrices get other types: those of Q4_K_M by default."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, str(reader.fields["general.architecture"].contents()))
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in {"general.architecture", "general.file_type"}:
            continue
        kind, inner = field.types[0], field.types[1] if len(field.types) > 1 else None
        writer.add_key_value(field.name, field.contents(), kind, inner)
    if choose is None:
        writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_K_M)
    layers = 1 + max(int(t.name.split(".")[1]) for t in reader.tensors if t.name.startswith("blk."))
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        kind = (choose or _type_in_q4_k_m)(tensor.name, values, layers)
        data = values if kind is None else _quantize(values, kind)
        writer.add_tensor(tensor.name, data, raw_shape=None if kind is None else data.shape, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _quantize(values: Array, kind: GGMLQuantizationType) -> Array:
    quantize: Callable[[Array], Array] = _QUANTIZERS.get(kind, lambda part: gguf.quantize(part, kind))
    rows = values.reshape(-1, values.shape[-1])
    step = max((1 << 22) // rows.shape[1], 1)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        parts = list(pool.map(lambda start: quantize(rows[start : start + step]), range(0, rows.shape[0], step)))
    joined: Array = np.concatenate(parts).reshape(*values.shape[:-1], -1)
    return joined


def _type_in_q4_k_m(name: str, values: Array, layers: int) -> GGMLQuantizationType | None:
    """Return the type that llama.cpp gives a tensor (llama-quant.cpp, `llama_tensor_get_type`), None for floats."""
    if values.ndim < 2 or values.shape[-1] % 256 or "ffn_gate_inp" in name:
        return None
    if name == "output.weight":
        return GGMLQuantizationType.Q6_K
    if name.startswith("blk.") and name.split(".")[2] in {"attn_v", "ffn_down", "ffn_down_exps"}:
        layer = int(name.split(".")[1])
        if layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2:
            return GGMLQuantizationType.Q6_K
    return GGMLQuantizationType.Q4_K


def _halves(values: Array) -> Array:
    return np.asarray(values, dtype=np.float16)


def _bytes(halves: Array) -> Array:
    return halves.astype("<f2").reshape(-1, 1).view(np.uint8)


def _ratio(values: Array, steps: Array) -> Array:
    steps = np.broadcast_to(steps.astype(np.float32), np.broadcast_shapes(values.shape, steps.shape))
    ratio: Array = np.rint(np.divide(values, steps, out=np.zeros(steps.shape, np.float32), where=steps > 0))
    return ratio
