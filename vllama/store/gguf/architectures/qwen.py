"""Qwen 2 and 3, also as mixtures of experts, and models built like them."""

from __future__ import annotations

from typing import Any

from vllama.store.gguf.architectures.decoder import (
    NAMES,
    QK_NORMS,
    decoder_config,
    expert_config,
    expert_width,
    has_tensor,
)
from vllama.store.gguf.architectures.rope import rope_parameters
from vllama.store.gguf.architectures.table import Architecture, Rule, experts, reshaped
from vllama.store.gguf.reading import GgufFile

EXPERTS: dict[str, Rule] = {
    "blk.{i}.ffn_gate_inp": "model.layers.{i}.mlp.gate",
    "blk.{i}.ffn_gate_exps": experts("model.layers.{i}.mlp.experts.{e}.gate_proj"),
    "blk.{i}.ffn_up_exps": experts("model.layers.{i}.mlp.experts.{e}.up_proj"),
    "blk.{i}.ffn_down_exps": experts("model.layers.{i}.mlp.experts.{e}.down_proj"),
}
"""Names of experts as most mixtures have them."""

SHARED_EXPERT: dict[str, Rule] = {
    "blk.{i}.ffn_gate_inp_shexp": reshaped("model.layers.{i}.mlp.shared_expert_gate", lambda shape: (1, shape[-1])),
    "blk.{i}.ffn_gate_shexp": "model.layers.{i}.mlp.shared_expert.gate_proj",
    "blk.{i}.ffn_up_shexp": "model.layers.{i}.mlp.shared_expert.up_proj",
    "blk.{i}.ffn_down_shexp": "model.layers.{i}.mlp.shared_expert.down_proj",
}


def _qwen2(file: GgufFile) -> dict[str, Any]:
    return decoder_config(
        file,
        "Qwen2ForCausalLM",
        "qwen2",
        hidden_act="silu",
        use_sliding_window=False,
        rope_parameters=rope_parameters(file),
    )


def _qwen2moe(file: GgufFile) -> dict[str, Any]:
    return decoder_config(
        file,
        "Qwen2MoeForCausalLM",
        "qwen2_moe",
        hidden_act="silu",
        use_sliding_window=False,
        rope_parameters=rope_parameters(file),
        moe_intermediate_size=expert_width(file),
        shared_expert_intermediate_size=file.tensors["blk.0.ffn_up_shexp.weight"].shape[0],
        norm_topk_prob=False,
        decoder_sparse_step=1,
        mlp_only_layers=[],
        **expert_config(file),
    )


def _qwen3(file: GgufFile) -> dict[str, Any]:
    return decoder_config(
        file,
        "Qwen3ForCausalLM",
        "qwen3",
        hidden_act="silu",
        use_sliding_window=False,
        attention_bias=has_tensor(file, "attn_q.bias"),
        rope_parameters=rope_parameters(file),
    )


def _qwen3moe(file: GgufFile) -> dict[str, Any]:
    width = expert_width(file)
    config = decoder_config(
        file,
        "Qwen3MoeForCausalLM",
        "qwen3_moe",
        hidden_act="silu",
        use_sliding_window=False,
        attention_bias=has_tensor(file, "attn_q.bias"),
        rope_parameters=rope_parameters(file),
        moe_intermediate_size=width,
        norm_topk_prob=True,
        decoder_sparse_step=1,
        mlp_only_layers=[],
        **expert_config(file),
    )
    return {"intermediate_size": width} | config


def _seed_oss(file: GgufFile) -> dict[str, Any]:
    return decoder_config(
        file,
        "SeedOssForCausalLM",
        "seed_oss",
        hidden_act="silu",
        attention_bias=has_tensor(file, "attn_q.bias"),
        attention_out_bias=has_tensor(file, "attn_output.bias"),
        rope_parameters=rope_parameters(file),
    )


_SEED_OSS_NAMES: dict[str, Rule] = {
    **NAMES,
    "blk.{i}.post_attention_norm": "model.layers.{i}.post_attention_layernorm",
}

TABLE = {
    "qwen2": Architecture(_qwen2, NAMES),
    "qwen2vl": Architecture(_qwen2, NAMES),  # without an image, time, height and width turn alike
    "qwen25vl": Architecture(_qwen2, NAMES),  # Ollama's name for it
    "qwen2moe": Architecture(_qwen2moe, {**NAMES, **EXPERTS, **SHARED_EXPERT}),
    "qwen3": Architecture(_qwen3, {**NAMES, **QK_NORMS}),
    "qwen3moe": Architecture(_qwen3moe, {**NAMES, **QK_NORMS, **EXPERTS}),
    "seed_oss": Architecture(_seed_oss, _SEED_OSS_NAMES),
}
