"""Memory needs of a model, read from its files, its flags and the settings."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from vllama.installed.cpu_products import multiplies_packed_weights
from vllama.scheduler.engine_flags import CONTEXT, given_value, is_given, tokens_of
from vllama.scheduler.memory import COMFORTABLE, REQUESTS, Layout, Learned, Need, Stated
from vllama.settings import Settings
from vllama.store.description import ModelDescription, describe, read_config
from vllama.store.kv_shape import kv_shape
from vllama.store.manifest import Manifest
from vllama.store.weights import REPACKED, Tensor, packed_bytes, quantization_bits

_ITEM_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2}
"""Bytes per value by safetensors type; types not listed have one byte."""

_DTYPES = {"float32": 4, "float": 4}
"""Bytes per value of `--dtype` values that do not have two."""

_BITS_WHEN_LOADED = {"bitsandbytes": 4}
"""Bits per weight of methods that quantize during the load; others have eight."""

_STRETCHED_ALREADY = ("su", "longrope", "llama3")
"""Rope types whose factor is already included in the positions of config.json."""

_PACKED = {"I32": 4, "U8": 2}
"""Mean factor between the extents of a layer and those of its packed weights."""

_UNKNOWN_CONTEXT = 8192
_EMBEDDED_AT_ONCE = 4
"""Number of texts of comfortable length for which the second worker of a model that generates has a KV cache."""

_VLLM_UTILIZATION = 0.92
_SPREAD_ELSEWHERE = ("--nnodes", "--node-rank", "--data-parallel-address", "--data-parallel-backend")


def need_of(
    manifest: Manifest,
    settings: Settings,
    flags: Sequence[str] = (),
    *,
    dtype: str = "",
    on_cpu: bool = False,
    learned: Mapping[str, Learned] | None = None,
) -> Need:
    """Read the needs of a model that is started with these flags: the manifest's, then the user's.

    `dtype` is the type to compute in where vllama chose one; `learned` is by the device's name. Raises ManifestCorrupt
    where a file is damaged or missing.
    """
    description, config = describe(manifest), read_config(manifest.snapshot)
    quantization = config.get("quantization_config") or config.get("compression_config") or {}
    item = _DTYPES.get(given_value(flags, "--dtype") or dtype, 2)
    if quantization.get("quant_method") == REPACKED:
        weights, bits = _repacked_weights(description, config, item, on_cpu=on_cpu)
    else:
        weights, bits = _weights(
            description.tensors, quantization, item, given_value(flags, "--quantization") or given_value(flags, "-q")
        )
    shape = kv_shape(config)
    own = longest_context(config, description.context_length) or settings.context_length or _UNKNOWN_CONTEXT
    at_once = REQUESTS
    if manifest.embeds:  # a small load beside the one that generates: it reads a text in one go and forgets it
        own, at_once = min(own, settings.context_length or COMFORTABLE), _EMBEDDED_AT_ONCE
    stated_context = tokens_of(given_value(flags, CONTEXT))
    wanted = stated_context or min(settings.context_length or own, own)
    return Need(
        name=manifest.name.display,
        weights=weights + _adapter_room(description.tensors, flags, item),
        kv=shape,
        context=wanted,
        bits=bits,
        kv_item=_kv_item(given_value(flags, "--kv-cache-dtype"), item),
        is_context_stated=bool(stated_context or settings.context_length),
        requests=_whole(given_value(flags, "--max-num-seqs")) or settings.num_parallel or at_once,
        heads=int(config.get("num_attention_heads") or config.get("n_head") or 0),
        layout=_layout(config),
        pools=manifest.embeds or "completion" not in description.capabilities,
        eager=is_given(flags, "--enforce-eager"),
        shares=settings.resident_limit() > 1,
        has_sleepers=bool(settings.sleep_budget),
        stated=stated_by(flags),
        learned=learned or {},
        notes=shape.notes,
    )


def stated_by(flags: Sequence[str]) -> Stated:
    """Return memory and devices set by the user's flags; vLLM refuses invalid values."""
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
        context=is_given(flags, CONTEXT),
        elsewhere=elsewhere,
    )


def longest_context(config: Mapping[str, Any], positions: int) -> int:
    """Return the longest context that vLLM serves: the model's positions, extended by its rope scaling; 0 if unknown.

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
    tensors: Sequence[Tensor], quantization: Mapping[str, Any], item: int, quantized_by: str
) -> tuple[int, int]:
    """Return the bytes of the loaded weights, and the bits of most of them.

    Unquantized floats are loaded in the type that vLLM computes in, whatever they are stored in.
    """
    if quantization:
        stored = sum(tensor.elements * _ITEM_BYTES.get(tensor.dtype, 1) for tensor in tensors)
        return stored, quantization_bits(quantization) or 8
    sizes = (_ITEM_BYTES.get(tensor.dtype, 1) for tensor in tensors)
    loaded = sum(tensor.elements * (item if size > 1 else 1) for tensor, size in zip(tensors, sizes, strict=True))
    bits = min(item * 8, _BITS_WHEN_LOADED.get(quantized_by, 8)) if quantized_by else item * 8
    return math.ceil(loaded * bits / (item * 8)), bits


def _repacked_weights(
    description: ModelDescription, config: Mapping[str, Any], item: int, *, on_cpu: bool
) -> tuple[int, int]:
    """Return the bytes of weights from a GGUF file when loaded, and the bits of most of them.

    A CPU unpacks them, unless it computes in 32 bits. Elsewhere an embedding that is the head too is held twice: by
    rows, and as the kernel takes it.
    """
    if on_cpu:
        packed = packed_bytes(description.tensors, item) if item == 4 and multiplies_packed_weights() else None
        bits = item * 8 if packed is None else quantization_bits(config["quantization_config"]) or 8
        return description.parameter_count * item if packed is None else packed, bits
    sizes = {tensor.name: tensor.elements * _ITEM_BYTES.get(tensor.dtype, 1) for tensor in description.tensors}
    tied = config.get("tie_word_embeddings") and [
        size for name, size in sizes.items() if "embed_tokens.weight_" in name
    ]
    return sum(sizes.values()) + sum(tied or ()), quantization_bits(config["quantization_config"]) or 8


def _adapter_room(tensors: Sequence[Tensor], flags: Sequence[str], item: int) -> int:
    """Return the bytes that vLLM reserves for LoRA adapters: per layer one pair of matrices per adapter slot.

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
