"""Phi 2, 3 and 4, and Phi 3.5 as a mixture of experts."""

from __future__ import annotations

from typing import Any

from vllama.store.gguf.architectures.decoder import (
    NAMES,
    decoder_config,
    expert_config,
    has_tensor,
    head_size,
    heads,
    kv_heads,
    rotated_part,
)
from vllama.store.gguf.architectures.rope import rope_parameters
from vllama.store.gguf.architectures.table import Architecture, Rule, block_sparse_experts, split
from vllama.store.gguf.reading import GgufFile

_ATTENTION = "model.layers.{i}.self_attn"
SPLIT_QKV: Rule = split(
    (f"{_ATTENTION}.q_proj", lambda file: heads(file) * head_size(file)),
    (f"{_ATTENTION}.k_proj", lambda file: kv_heads(file) * head_size(file)),
    (f"{_ATTENTION}.v_proj", lambda file: kv_heads(file) * head_size(file)),
)
"""Rule for a fused layer whose parts the snapshot has one by one."""

_PHI2_NAMES: dict[str, Rule] = {
    **NAMES,
    "output_norm": "model.final_layernorm",
    "blk.{i}.attn_qkv": SPLIT_QKV,
    "blk.{i}.attn_output": f"{_ATTENTION}.dense",
    "blk.{i}.ffn_up": "model.layers.{i}.mlp.fc1",
    "blk.{i}.ffn_down": "model.layers.{i}.mlp.fc2",
}
_PHI3_NAMES: dict[str, Rule] = {
    **NAMES,
    "blk.{i}.attn_qkv": f"{_ATTENTION}.qkv_proj",
    "blk.{i}.ffn_up": "model.layers.{i}.mlp.gate_up_proj",
}
_MOE = "model.layers.{i}.block_sparse_moe"
_PHIMOE_NAMES: dict[str, Rule] = {
    **NAMES,
    "blk.{i}.attn_qkv": SPLIT_QKV,
    **block_sparse_experts(_MOE),
}


def _phi2(file: GgufFile) -> dict[str, Any]:
    return decoder_config(
        file,
        "PhiForCausalLM",
        "phi",
        hidden_act="gelu_new",
        layer_norm_eps=float(file.key("{arch}.attention.layer_norm_epsilon")),
        qk_layernorm=False,
        rope_parameters=rope_parameters(file) | {"partial_rotary_factor": rotated_part(file)},
    )


def _phi3_fields(file: GgufFile) -> dict[str, Any]:
    context = int(file.key("{arch}.context_length"))
    return {
        "hidden_act": "silu",
        "original_max_position_embeddings": int(file.key("{arch}.rope.scaling.original_context_length", context)),
        "sliding_window": int(file.key("{arch}.attention.sliding_window", 0)) or None,
        "rope_parameters": rope_parameters(file) | {"partial_rotary_factor": rotated_part(file)},
    }


def _phi3(file: GgufFile) -> dict[str, Any]:
    return decoder_config(file, "Phi3ForCausalLM", "phi3", **_phi3_fields(file))


def _phimoe(file: GgufFile) -> dict[str, Any]:
    config = decoder_config(
        file,
        "PhiMoEForCausalLM",
        "phimoe",
        attention_bias=has_tensor(file, "attn_output.bias"),
        lm_head_bias="output.bias" in file.tensors,
        **expert_config(file, "num_local_experts"),
        **_phi3_fields(file),
    )
    scale = float(file.key("{arch}.rope.scaling.attn_factor", 1.0))
    config["rope_parameters"] |= {"short_mscale": scale, "long_mscale": scale}
    return config


TABLE = {
    "phi2": Architecture(_phi2, _PHI2_NAMES),
    "phi3": Architecture(_phi3, _PHI3_NAMES),
    "phimoe": Architecture(_phimoe, _PHIMOE_NAMES),
}
