"""What a model needs, read from its files, its flags and the settings: the facts that a plan is made of."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from vllama.scheduler.engine_flags import given_value, is_given
from vllama.scheduler.memory import REQUESTS, Layout, Learned, Need, Stated
from vllama.settings import Settings
from vllama.store.description import describe, read_config
from vllama.store.kv_shape import kv_shape
from vllama.store.manifest import Manifest
from vllama.store.weights import Tensor, quantization_bits

_ITEM_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2}
"""By safetensors' names; what is not listed has one byte."""

_DTYPES = {"float32": 4, "float": 4}
"""What `--dtype` can make of weights and of the KV cache besides two bytes."""

_BITS_WHEN_LOADED = {"bitsandbytes": 4}
"""Of methods that quantise weights while they load them; the others come to eight."""

_STRETCHED_ALREADY = ("su", "longrope", "llama3")
"""Kinds of rope whose factor the positions in config.json have in them."""

_PACKED = {"I32": 4, "U8": 2}
"""How much larger than its packed weights a layer is, on the mean of its two extents."""

_UNKNOWN_CONTEXT = 8192
_VLLM_UTILIZATION = 0.92
_SPREAD_ELSEWHERE = ("--nnodes", "--node-rank", "--data-parallel-address", "--data-parallel-backend")
_SCALES = {"": 1, "k": 1000, "m": 10**6, "g": 10**9, "K": 2**10, "M": 2**20, "G": 2**30}


def need_of(
    manifest: Manifest,
    settings: Settings,
    flags: Sequence[str] = (),
    *,
    dtype: str = "",
    learned: Mapping[str, Learned] | None = None,
) -> Need:
    """Read the need of a model that is started with these flags: its manifest's, then the user's.

    `dtype` is the type to compute in where vllama chose one; `learned` is by the device's name. Raises ManifestCorrupt
    where a file is damaged or missing.
    """
    description, config = describe(manifest), read_config(manifest.snapshot)
    quantization = config.get("quantization_config") or config.get("compression_config") or {}
    item = _DTYPES.get(given_value(flags, "--dtype") or dtype, 2)
    weights, bits = _weights(
        description.tensors, quantization, item, given_value(flags, "--quantization") or given_value(flags, "-q")
    )
    shape = kv_shape(config)
    own = _longest(config, description.context_length) or settings.context_length or _UNKNOWN_CONTEXT
    stated_context = tokens_of(given_value(flags, "--max-model-len"))
    wanted = stated_context or min(settings.context_length or own, own)
    return Need(
        name=manifest.name.display,
        weights=weights + _adapter_room(description.tensors, flags, item),
        kv=shape,
        context=wanted,
        bits=bits,
        pinning=_pinning(description.tensors),
        kv_item=_kv_item(given_value(flags, "--kv-cache-dtype"), item),
        is_context_stated=bool(stated_context or settings.context_length),
        requests=_whole(given_value(flags, "--max-num-seqs")) or settings.num_parallel or REQUESTS,
        heads=int(config.get("num_attention_heads") or config.get("n_head") or 0),
        layout=_layout(config),
        pools="completion" not in description.capabilities,
        eager=is_given(flags, "--enforce-eager"),
        shares=settings.resident_limit() > 1,
        has_sleepers=bool(settings.sleep_budget),
        stated=stated_by(flags),
        learned=learned or {},
        notes=shape.notes,
    )


def stated_by(flags: Sequence[str]) -> Stated:
    """What the user's flags decide of memory and devices; a value that cannot be read is left to vLLM to refuse."""
    elsewhere = given_value(flags, "--distributed-executor-backend") == "ray" or any(
        is_given(flags, flag) for flag in _SPREAD_ELSEWHERE
    )
    utilization = _fraction(given_value(flags, "--gpu-memory-utilization"))
    kv = tokens_of(given_value(flags, "--kv-cache-memory-bytes"))
    return Stated(
        tensor_parallel=_parallel(flags, "--tensor-parallel-size", "-tp"),
        pipeline_parallel=_parallel(flags, "--pipeline-parallel-size", "-pp") or 1,
        data_parallel=_parallel(flags, "--data-parallel-size", "-dp") or 1,
        kv=kv,
        utilization=utilization or (_VLLM_UTILIZATION if elsewhere and not kv else 0.0),
        context=is_given(flags, "--max-model-len"),
        elsewhere=elsewhere,
    )


def tokens_of(text: str) -> int:
    """A number as vLLM's `human_readable_int` reads it: "8192", "8k", "4K", "1.5G"; 0 for what is none, or negative."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmMgG]?)", text.strip())
    return int(float(match.group(1)) * _SCALES[match.group(2)]) if match else 0


def _longest(config: Mapping[str, Any], positions: int) -> int:
    """The longest context that vLLM serves: the model's positions, stretched as its rope is.

    The rule is that of `vllm/config/model.py: _get_and_verify_max_len`.
    """
    rope = config.get("rope_scaling") or config.get("rope_parameters")
    if not isinstance(rope, dict) or "gemma3" in str(config.get("model_type")):
        return positions
    kind, factor = rope.get("rope_type") or rope.get("type"), rope.get("factor")
    if kind in _STRETCHED_ALREADY or not isinstance(factor, int | float):
        return positions
    original = rope.get("original_max_position_embeddings") if kind == "yarn" else None
    return int((original if isinstance(original, int) else positions) * factor)


def _weights(
    tensors: Sequence[Tensor], quantization: Mapping[str, Any], item: int, quantised_by: str
) -> tuple[int, int]:
    """The bytes of the weights once they are loaded, and the bits of most of them.

    Unquantised floats are loaded in the type that vLLM computes in, whatever they are stored in.
    """
    if quantization:
        stored = sum(tensor.elements * _ITEM_BYTES.get(tensor.dtype, 1) for tensor in tensors)
        return stored, quantization_bits(quantization) or 8
    sizes = (_ITEM_BYTES.get(tensor.dtype, 1) for tensor in tensors)
    loaded = sum(tensor.elements * (item if size > 1 else 1) for tensor, size in zip(tensors, sizes, strict=True))
    bits = min(item * 8, _BITS_WHEN_LOADED.get(quantised_by, 8)) if quantised_by else item * 8
    return math.ceil(loaded * bits / (item * 8)), bits


def _pinning(tensors: Sequence[Tensor]) -> float:
    """How much larger than weights their copy in pinned memory is: PyTorch rounds each block to a power of two.

    Of tensors that vLLM joins into one (as q, k and v) the block is not exactly known.
    """
    sizes = [tensor.elements * _ITEM_BYTES.get(tensor.dtype, 1) for tensor in tensors]
    return sum(1 << (size - 1).bit_length() for size in sizes if size) / sum(sizes) if any(sizes) else 1.0


def _adapter_room(tensors: Sequence[Tensor], flags: Sequence[str], item: int) -> int:
    """The bytes that vLLM sets aside for LoRA adapters: for each layer as many pairs of matrices as are served at once.

    Packed weights hide a part of their layers' extents, and stacked ones have a pair for each expert.
    """
    if not is_given(flags, "--enable-lora"):
        return 0
    rank = _whole(given_value(flags, "--max-lora-rank")) or 16  # vLLM's own values
    at_once = _whole(given_value(flags, "--max-loras")) or 1
    extents = sum(
        math.prod(tensor.shape[:-2]) * sum(tensor.shape[-2:]) * _PACKED.get(tensor.dtype, 1)
        for tensor in tensors
        if len(tensor.shape) > 1
    )
    return at_once * rank * extents * item


def _kv_item(stated: str, item: int) -> int:
    return 1 if stated.startswith(("fp8", "int8", "turboquant")) else {"float16": 2, "bfloat16": 2}.get(stated, item)


def _layout(config: Mapping[str, Any]) -> Layout:
    def first(*names: str) -> int:
        values = (config.get(name) for name in names)
        return next((int(value) for value in values if isinstance(value, int | float) and value), 0)

    experts = first("moe_intermediate_size") * first("num_experts_per_tok", "num_experts_per_token")
    return Layout(
        layers=first("num_hidden_layers", "n_layer", "num_layers"),
        hidden=first("hidden_size", "n_embd", "d_model"),
        intermediate=max(first("intermediate_size", "n_inner", "ffn_dim", "d_ff"), experts),
        vocabulary=first("vocab_size"),
    )


def _parallel(flags: Sequence[str], flag: str, short: str) -> int:
    return _whole(given_value(flags, flag) or given_value(flags, short))


def _whole(text: str) -> int:
    return int(text) if text.isdecimal() else 0


def _fraction(text: str) -> float:
    try:
        value = json.loads(text)
    except ValueError:
        return 0.0
    return float(value) if isinstance(value, int | float) and 0 < value <= 1 else 0.0
