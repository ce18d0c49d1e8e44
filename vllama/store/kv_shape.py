"""Size of one request in the KV cache, from a model's config.json, without torch.

The layer types are those of vLLM's `vllm/v1/kv_cache_interface.py`: full attention, a sliding window, the
compressed latent of DeepSeek's models (MLA), and the recurrent layers of Mamba and of linear attention.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_FULL = {"full_attention", "attention", "global", "full"}
_WINDOWED = {"sliding_attention", "chunked_attention", "local", "sliding"}
_WITHOUT_CACHE = {"mlp", "moe", "-"}

_PATTERNS = {"gemma2": 2, "gemma3": 6, "gemma3_text": 6, "cohere2": 4}
"""Interval between full-attention layers, for older models whose config.json does not state it."""

_UNEVEN = 1.1
"""Overhead factor: vLLM gives layers of different types pages of one size (`unify_kv_cache_spec_page_size`)."""


@dataclass(frozen=True, slots=True)
class KvShape:
    """KV elements of one request on one device group: `full` and `windowed` per token, `state` for any length.

    `window` is in tokens; `kv_heads` is the number that tensor parallelism divides, 0 if every device keeps all (MLA).
    `notes` name estimates.
    """

    full: int
    windowed: int = 0
    window: int = 0
    state: int = 0
    kv_heads: int = 1
    notes: tuple[str, ...] = ()

    def elements(self, tokens: int, *, devices: int = 1, batched: int = 8192) -> int:
        """Return the number of elements of a request per device; `batched` tokens are computed at a time."""
        attended = self.full * tokens + self.windowed * min(tokens, self.window + batched)
        if self.kv_heads:
            attended = math.ceil(attended * math.ceil(self.kv_heads / devices) / self.kv_heads)
        total = attended + math.ceil(self.state / devices)
        kinds = sum(part > 0 for part in (self.full, self.windowed, self.state))
        return math.ceil(total * _UNEVEN) if kinds > 1 else total


def kv_shape(config: Mapping[str, Any]) -> KvShape:
    """Return the shape for a config from `description.read_config`; all zero if unknown."""
    layers = _number(config, "num_hidden_layers", "n_layer", "num_layers")
    heads = _number(config, "num_attention_heads", "n_head", "num_heads")
    if latent := _number(config, "kv_lora_rank"):
        # Stored once for all heads and on every device; sparse attention adds an index in FP8 with its scale.
        index = (_number(config, "index_head_dim") + 4) // 2 if _number(config, "index_head_dim") else 0
        return KvShape(layers * (latent + _number(config, "qk_rope_head_dim") + index), kv_heads=0)
    width = _number(config, "hidden_size", "n_embd", "d_model")
    head_size = _number(config, "head_dim") or (width // heads if heads else 0)
    multi_query = 1 if config.get("multi_query") else 0
    kv_heads = multi_query or _number(config, "num_key_value_heads", "num_kv_heads") or heads
    per_layer = 2 * kv_heads * head_size
    full, windowed, recurrent = _kinds(config, layers)
    window = _number(config, "sliding_window", "attention_chunk_size")
    if windowed and not window:
        full, windowed = full + windowed, 0
    state, notes = _state(config, width) if recurrent else (0, ())
    return KvShape(
        full=full * per_layer,
        windowed=windowed * per_layer,
        window=window,
        state=recurrent * state,
        kv_heads=kv_heads or 1,
        notes=notes,
    )


def _kinds(config: Mapping[str, Any], layers: int) -> tuple[int, int, int]:
    """Return the numbers of layers with full attention, with a window, and recurrent ones."""
    if kinds := _listed(config, layers):
        full = sum(kind in _FULL for kind in kinds)
        windowed = sum(kind in _WINDOWED for kind in kinds)
        without = sum(kind in _WITHOUT_CACHE for kind in kinds)
        return full, windowed, len(kinds) - full - windowed - without
    family = str(config.get("model_type", ""))
    if "mamba" in family or family.startswith("rwkv"):
        return 0, 0, layers
    if interval := _number(config, "full_attention_interval"):
        return layers // interval, 0, layers - layers // interval
    if not _number(config, "sliding_window") or config.get("use_sliding_window") is False:
        return layers, 0, 0
    pattern = _number(config, "sliding_window_pattern", "_sliding_window_pattern") or _PATTERNS.get(family, 0)
    full = layers // pattern if pattern else 0
    return full, layers - full, 0


def _listed(config: Mapping[str, Any], layers: int) -> Sequence[str]:
    for key in ("layer_types", "layers_block_type", "block_types"):
        listed = config.get(key)
        if isinstance(listed, list) and listed:
            return [str(kind) for kind in listed[:layers] or listed]
    pattern = config.get("hybrid_override_pattern")  # Nemotron-H: M, * and -
    names = {"*": "attention", "-": "mlp", "E": "moe"}
    return [names.get(letter, "mamba") for letter in pattern] if isinstance(pattern, str) else ()


def _state(config: Mapping[str, Any], width: int) -> tuple[int, tuple[str, ...]]:
    """Return the elements of one recurrent layer's state, as computed by vLLM's MambaStateShapeCalculator."""
    if key_heads := _number(config, "linear_num_key_heads"):  # gated delta net: Qwen3-Next
        key, value = _number(config, "linear_key_head_dim"), _number(config, "linear_value_head_dim")
        value_heads = _number(config, "linear_num_value_heads")
        channels = 2 * key_heads * key + value_heads * value
        kernel = _number(config, "linear_conv_kernel_dim") or 4
        return value_heads * key * value + (kernel - 1) * channels, ()
    size = _number(config, "mamba_d_state", "ssm_state_size", "state_size")
    inner = (
        _number(config, "mamba_num_heads", "mamba_n_heads") * _number(config, "mamba_head_dim", "mamba_d_head")
        or _number(config, "mamba_d_ssm", "intermediate_size" if not _number(config, "num_attention_heads") else "")
        or width * (_number(config, "mamba_expand", "expand") or 2)
    )
    if size:
        groups = _number(config, "mamba_n_groups", "n_groups") or 1
        kernel = _number(config, "mamba_d_conv", "conv_kernel") or 4
        return inner * size + (kernel - 1) * (inner + 2 * groups * size), ()
    return width * 128, ("the memory of its recurrent layers is an estimate",)


def _number(config: Mapping[str, Any], *names: str) -> int:
    """Return the first of these keys that is a number, as an int; 0 if none is."""
    for name in names:
        value = config.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
            return int(value)
    return 0
