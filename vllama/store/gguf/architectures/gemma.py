"""Gemma. Its norms multiply by 1 + weight, and the converter stores that sum."""

from __future__ import annotations

from typing import Any

from vllama.store.gguf.architectures.decoder import (
    KV_HEADS,
    NAMES,
    QK_NORMS,
    decoder_config,
    heads,
    layer_count,
    layer_types,
    vocabulary_size,
)
from vllama.store.gguf.architectures.rope import rope_parameters
from vllama.store.gguf.architectures.table import Architecture, Rule, ignored, shifted, whole, without_prefix
from vllama.store.gguf.reading import GgufFile

_LOCAL_THETA = 10_000.0
_GEMMA2_WINDOW = 4096
_GEMMA2_PATTERN, _GEMMA3_PATTERN = 2, 6
"""Interval between layers that attend to the whole context (llama.cpp's src/models/gemma2.cpp and gemma3.cpp)."""

_EXTENDED_CONTEXT, _EXTENSION = 131_072, 8.0
"""Context of the models that see, and the factor of its extension, which Ollama's files do not say."""

_LARGEST_LAYERS = {"gemma2": 46, "gemma3": 62}
"""Number of layers of the 27B, whose attention is scaled by another rule."""

_GEMMA_NAMES: dict[str, Rule] = {
    **NAMES,
    "output": ignored,  # always tied; some quantizers store the embedding twice
    "output_norm": shifted("model.norm"),
    "blk.{i}.attn_norm": shifted("model.layers.{i}.input_layernorm"),
    "blk.{i}.ffn_norm": shifted("model.layers.{i}.post_attention_layernorm"),
}
_GEMMA2_NAMES: dict[str, Rule] = {
    **_GEMMA_NAMES,
    "blk.{i}.post_attention_norm": shifted("model.layers.{i}.post_attention_layernorm"),
    "blk.{i}.ffn_norm": shifted("model.layers.{i}.pre_feedforward_layernorm"),
    "blk.{i}.post_ffw_norm": shifted("model.layers.{i}.post_feedforward_layernorm"),
}
_GEMMA3_NAMES: dict[str, Rule] = {
    **_GEMMA2_NAMES,
    "blk.{i}.attn_q_norm": shifted("model.layers.{i}.self_attn.q_norm"),
    "blk.{i}.attn_k_norm": shifted("model.layers.{i}.self_attn.k_norm"),
}


def _gemma(file: GgufFile) -> dict[str, Any]:
    return decoder_config(
        file,
        "GemmaForCausalLM",
        "gemma",
        hidden_act="gelu_pytorch_tanh",
        hidden_activation="gelu_pytorch_tanh",
        tie_word_embeddings=True,
        rope_parameters=rope_parameters(file),
    )


def _sliding(file: GgufFile, architecture: str, model_type: str, pattern: int, window: int) -> dict[str, Any]:
    config = decoder_config(
        file,
        architecture,
        model_type,
        hidden_activation="gelu_pytorch_tanh",
        tie_word_embeddings=True,
        final_logit_softcapping=file.key("{arch}.final_logit_softcapping", None),
        attn_logit_softcapping=file.key("{arch}.attn_logit_softcapping", None),
        sliding_window=window or None,
        layer_types=layer_types(file, pattern=pattern if window else 1),
    )
    is_largest = config["num_hidden_layers"] == _LARGEST_LAYERS.get(file.architecture)
    scalar = config["hidden_size"] // config["num_attention_heads"] if is_largest else config["head_dim"]
    return config | {"query_pre_attn_scalar": scalar}


def _gemma2(file: GgufFile) -> dict[str, Any]:
    window = int(file.key("{arch}.attention.sliding_window", _GEMMA2_WINDOW))
    config = _sliding(file, "Gemma2ForCausalLM", "gemma2", _GEMMA2_PATTERN, window)
    return config | {"hidden_act": "gelu_pytorch_tanh", "rope_parameters": rope_parameters(file)}


def _gemma3(file: GgufFile) -> dict[str, Any]:
    window = int(file.key("{arch}.attention.sliding_window", 0))
    config = _sliding(file, "Gemma3ForCausalLM", "gemma3_text", _GEMMA3_PATTERN, window)
    rope = rope_by_type(file)
    if config["max_position_embeddings"] >= _EXTENDED_CONTEXT and not _says_scaling(file):
        rope["full_attention"] |= {"rope_type": "linear", "factor": _EXTENSION}
    return config | {"rope_parameters": rope}


def _says_scaling(file: GgufFile) -> bool:
    return any(file.key(f"{{arch}}.rope.scaling.{name}", None) is not None for name in ("type", "factor"))


def rope_by_type(file: GgufFile) -> dict[str, Any]:
    """Return `rope_parameters` of the layers with the whole context, and of those with a sliding window."""
    return {
        "full_attention": rope_parameters(file, float(file.key("{arch}.rope.global.freq_base", 1_000_000.0))),
        "sliding_attention": {
            "rope_type": "default",
            "rope_theta": float(
                file.key("{arch}.rope.freq_base_swa", file.key("{arch}.rope.local.freq_base", _LOCAL_THETA))
            ),
        },
    }


_EMBEDDING_NAMES: dict[str, Rule] = {
    pattern: without_prefix(rule) if callable(rule) else rule.removeprefix("model.")
    for pattern, rule in _GEMMA3_NAMES.items()
} | {"dense_2": ignored, "dense_3": ignored}  # after the pooling: pooling.py
"""The model alone, without a head: its tensors have no prefix."""


def _gemma_embedding(file: GgufFile) -> dict[str, Any]:
    return _gemma3(file) | {"architectures": ["Gemma3TextModel"], "use_bidirectional_attention": True}


PER_LAYER_NAMES: dict[str, Rule] = {
    **NAMES,
    **QK_NORMS,
    "output": ignored,
    "per_layer_token_embd": "model.embed_tokens_per_layer",
    "per_layer_model_proj": "model.per_layer_model_projection",
    "per_layer_proj_norm": "model.per_layer_projection_norm",
    "blk.{i}.post_attention_norm": "model.layers.{i}.post_attention_layernorm",
    "blk.{i}.ffn_norm": "model.layers.{i}.pre_feedforward_layernorm",
    "blk.{i}.post_ffw_norm": "model.layers.{i}.post_feedforward_layernorm",
    "blk.{i}.inp_gate": "model.layers.{i}.per_layer_input_gate",
    "blk.{i}.proj": "model.layers.{i}.per_layer_projection",
    "blk.{i}.post_norm": "model.layers.{i}.post_per_layer_input_norm",
}
"""Names of the models with inputs for each layer: without shifted norms, unlike those before them."""

_GEMMA4_NAMES: dict[str, Rule] = {
    **PER_LAYER_NAMES,
    "blk.{i}.layer_output_scale": whole("model.layers.{i}.layer_scalar"),
    "blk.{i}.ffn_gate_inp": lambda found: [
        found.placed_as(f"model.layers.{found.block}.router.{'scale' if found.suffix == '.scale' else 'proj.weight'}")
    ],
    "blk.{i}.ffn_gate_up_exps": whole("model.layers.{i}.experts.gate_up_proj"),
    "blk.{i}.ffn_down_exps": lambda found: [
        found.placed_as(
            f"model.layers.{found.block}."
            + ("router.per_expert_scale" if found.suffix == ".scale" else "experts.down_proj")
        )
    ],
    "blk.{i}.pre_ffw_norm_2": "model.layers.{i}.pre_feedforward_layernorm_2",
    "blk.{i}.post_ffw_norm_1": "model.layers.{i}.post_feedforward_layernorm_1",
    "blk.{i}.post_ffw_norm_2": "model.layers.{i}.post_feedforward_layernorm_2",
}
"""The layers of some have experts beside the dense layer."""


def _gemma4(file: GgufFile) -> dict[str, Any]:
    layers = layer_count(file)
    experts = int(file.key("{arch}.expert_count", 0))
    types = layer_types(file, pattern=_GEMMA3_PATTERN)
    width = file.key("{arch}.feed_forward_length")
    widths = width if isinstance(width, list) else [width] * layers
    counts = file.key(KV_HEADS)
    by_type = dict(zip(types, counts if isinstance(counts, list) else [counts] * layers, strict=True))
    full = types.index("full_attention")
    per_layer = file.tensors.get("per_layer_token_embd.weight")
    return {
        "architectures": ["Gemma4ForCausalLM"],
        "model_type": "gemma4_text",
        "vocab_size": vocabulary_size(file),
        "hidden_size": int(file.key("{arch}.embedding_length")),
        "intermediate_size": int(widths[0]),
        "use_double_wide_mlp": len(set(widths)) > 1,
        "num_hidden_layers": layers,
        "num_attention_heads": heads(file),
        "num_key_value_heads": int(by_type.get("sliding_attention", by_type["full_attention"])),
        "num_global_key_value_heads": int(by_type["full_attention"]),
        "attention_k_eq_v": f"blk.{full}.attn_v.weight" not in file.tensors,
        "num_kv_shared_layers": int(file.key("{arch}.attention.shared_kv_layers", 0)),
        "head_dim": int(file.key("{arch}.attention.key_length_swa")),
        "global_head_dim": int(file.key("{arch}.attention.key_length")),
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size_per_layer_input": int(file.key("{arch}.embedding_length_per_layer_input", 0)),
        "vocab_size_per_layer_input": per_layer.shape[0] if per_layer else vocabulary_size(file),
        "max_position_embeddings": int(file.key("{arch}.context_length")),
        "rms_norm_eps": float(file.key("{arch}.attention.layer_norm_rms_epsilon")),
        "final_logit_softcapping": file.key("{arch}.final_logit_softcapping", None),
        "sliding_window": int(file.key("{arch}.attention.sliding_window")),
        "layer_types": types,
        "enable_moe_block": experts > 0,
        "num_experts": experts or None,
        "top_k_experts": int(file.key("{arch}.expert_used_count", 0)) or None,
        "moe_intermediate_size": int(file.key("{arch}.expert_feed_forward_length", 0)) or None,
        "tie_word_embeddings": True,
        "rope_parameters": {
            "full_attention": {
                "rope_type": "proportional",
                "rope_theta": float(file.key("{arch}.rope.freq_base", 1_000_000.0)),
                "partial_rotary_factor": _rotated_share(file),
            },
            "sliding_attention": {
                "rope_type": "default",
                "rope_theta": float(file.key("{arch}.rope.freq_base_swa", _LOCAL_THETA)),
            },
        },
    }


def _rotated_share(file: GgufFile) -> float:
    """Return which share of the frequencies is used: the others are divided by a huge number."""
    divisors = file.tensors.get("rope_freqs.weight")
    return 1.0 if divisors is None else float((divisors.values(slice(None)) < 2).mean())


TABLE = {
    "gemma": Architecture(_gemma, _GEMMA_NAMES),
    "gemma2": Architecture(_gemma2, _GEMMA2_NAMES),
    "gemma3": Architecture(_gemma3, _GEMMA3_NAMES),
    "gemma4": Architecture(_gemma4, _GEMMA4_NAMES),
    "gemma-embedding": Architecture(_gemma_embedding, _EMBEDDING_NAMES, is_encoder=True),
}
