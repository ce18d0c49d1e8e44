"""GLM 4 in its two forms, and GLM 4.5 as a mixture of experts."""

from __future__ import annotations

from typing import Any

from vllama.store.gguf.architectures.decoder import (
    NAMES,
    QK_NORMS,
    decoder_config,
    expert_config,
    expert_width,
    has_tensor,
    rotated_part,
)
from vllama.store.gguf.architectures.phi import SPLIT_QKV
from vllama.store.gguf.architectures.qwen import EXPERTS
from vllama.store.gguf.architectures.rope import rope_parameters
from vllama.store.gguf.architectures.table import Architecture, Rule, whole
from vllama.store.gguf.reading import GgufFile

_LAYER = "model.layers.{i}"
_CHATGLM_NAMES: dict[str, Rule] = {
    **NAMES,
    "blk.{i}.attn_qkv": SPLIT_QKV,
    "blk.{i}.ffn_up": f"{_LAYER}.mlp.gate_up_proj",
}
_GLM4_NAMES: dict[str, Rule] = {
    **NAMES,
    "blk.{i}.post_attention_norm": f"{_LAYER}.post_self_attn_layernorm",
    "blk.{i}.post_ffw_norm": f"{_LAYER}.post_mlp_layernorm",
    "blk.{i}.ffn_up": f"{_LAYER}.mlp.gate_up_proj",
}
_GLM4MOE_NAMES: dict[str, Rule] = {
    **NAMES,
    **QK_NORMS,
    **EXPERTS,
    "blk.{i}.post_attention_norm": f"{_LAYER}.post_attention_layernorm",
    "blk.{i}.exp_probs_b": whole("model.layers.{i}.mlp.gate.e_score_correction_bias"),
    "blk.{i}.ffn_gate_shexp": f"{_LAYER}.mlp.shared_experts.gate_proj",
    "blk.{i}.ffn_up_shexp": f"{_LAYER}.mlp.shared_experts.up_proj",
    "blk.{i}.ffn_down_shexp": f"{_LAYER}.mlp.shared_experts.down_proj",
}


def _fields(file: GgufFile) -> dict[str, Any]:
    return {
        "hidden_act": "silu",
        "attention_bias": has_tensor(file, "attn_q.bias") or has_tensor(file, "attn_qkv.bias"),
        "partial_rotary_factor": rotated_part(file),
        "rope_parameters": rope_parameters(file) | {"partial_rotary_factor": rotated_part(file)},
    }


def _chatglm(file: GgufFile) -> dict[str, Any]:
    return decoder_config(file, "GlmForCausalLM", "glm", **_fields(file))


def _glm4(file: GgufFile) -> dict[str, Any]:
    return decoder_config(file, "Glm4ForCausalLM", "glm4", **_fields(file))


def _glm4moe(file: GgufFile) -> dict[str, Any]:
    return decoder_config(
        file,
        "Glm4MoeForCausalLM",
        "glm4_moe",
        use_qk_norm=has_tensor(file, "attn_q_norm.weight"),
        moe_intermediate_size=expert_width(file),
        first_k_dense_replace=int(file.key("{arch}.leading_dense_block_count", 0)),
        n_shared_experts=int(file.key("{arch}.expert_shared_count", 1)),
        n_group=int(file.key("{arch}.expert_group_count", 1)) or 1,
        topk_group=int(file.key("{arch}.expert_group_used_count", 1)) or 1,
        norm_topk_prob=bool(file.key("{arch}.expert_weights_norm", True)),
        routed_scaling_factor=float(file.key("{arch}.expert_weights_scale", 1.0)) or 1.0,
        **_fields(file),
        **expert_config(file, "n_routed_experts"),
    )


TABLE = {
    "chatglm": Architecture(_chatglm, _CHATGLM_NAMES),
    "glm4": Architecture(_glm4, _GLM4_NAMES),
    "glm4moe": Architecture(_glm4moe, _GLM4MOE_NAMES),
}
