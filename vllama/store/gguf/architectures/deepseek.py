"""DeepSeek 2 and 3 with their compressed keys and values, and MiniMax M2."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vllama.store.gguf.architectures.decoder import (
    NAMES,
    QK_NORMS,
    decoder_config,
    expert_config,
    expert_width,
    heads,
    rotated_part,
)
from vllama.store.gguf.architectures.qwen import EXPERTS
from vllama.store.gguf.architectures.rope import rope_parameters
from vllama.store.gguf.architectures.table import (
    Architecture,
    Found,
    Rule,
    block_sparse_experts,
    ignored,
    whole,
)
from vllama.store.gguf.placing import Piece, PlacedTensor, place
from vllama.store.gguf.reading import GgufFile

_LAYER = "model.layers.{i}"
_SIGMOID = 2
"""Value of `expert_gating_func` (gguf's `ExpertGatingFuncType`)."""


def _kv_b(found: Found) -> Iterable[PlacedTensor]:
    """Join the halves of a layer that the converter separates head by head; it also transposes the first."""
    keys, values = found.tensor, found.sibling("attn_v_b")
    count, rank, key_size = keys.shape
    value_size = values.shape[1]
    pieces: list[Piece] = []
    for head in range(count):
        pieces.append(Piece(keys, slice(head * rank, (head + 1) * rank), transposed=True))
        pieces.append(Piece(values, slice(head * value_size, (head + 1) * value_size)))
    name = found.named(f"{_LAYER}.self_attn.kv_b_proj")
    yield place(name, *pieces, shape=(count * (key_size + value_size), rank))


_NAMES: dict[str, Rule] = {
    **NAMES,
    **EXPERTS,
    "blk.{i}.attn_q_a": f"{_LAYER}.self_attn.q_a_proj",
    "blk.{i}.attn_q_a_norm": f"{_LAYER}.self_attn.q_a_layernorm",
    "blk.{i}.attn_q_b": f"{_LAYER}.self_attn.q_b_proj",
    "blk.{i}.attn_kv_a_mqa": f"{_LAYER}.self_attn.kv_a_proj_with_mqa",
    "blk.{i}.attn_kv_a_norm": f"{_LAYER}.self_attn.kv_a_layernorm",
    "blk.{i}.attn_kv_b": f"{_LAYER}.self_attn.kv_b_proj",  # files before the halves were separated
    "blk.{i}.attn_k_b": _kv_b,
    "blk.{i}.attn_v_b": ignored,  # with the first half
    "blk.{i}.exp_probs_b": whole("model.layers.{i}.mlp.gate.e_score_correction_bias"),
    "blk.{i}.ffn_gate_shexp": f"{_LAYER}.mlp.shared_experts.gate_proj",
    "blk.{i}.ffn_up_shexp": f"{_LAYER}.mlp.shared_experts.up_proj",
    "blk.{i}.ffn_down_shexp": f"{_LAYER}.mlp.shared_experts.down_proj",
}


def _rope(file: GgufFile) -> dict[str, Any]:
    rope = rope_parameters(file)
    if rope["rope_type"] == "yarn":
        # The key has a tenth of `mscale_all_dim`, which the models have twice (conversion/deepseek.py).
        scale = float(file.key("{arch}.rope.scaling.yarn_log_multiplier", 0.0)) * 10
        rope = {"beta_fast": 32.0, "beta_slow": 1.0} | rope
        if scale:
            rope |= {"mscale": scale, "mscale_all_dim": scale}
    return rope


def _deepseek(file: GgufFile) -> dict[str, Any]:
    """Return config.json of DeepSeek 3 if experts are chosen by a sigmoid, else of DeepSeek 2."""
    has_bias = any(name.endswith("exp_probs_b.bias") for name in file.tensors)
    is_v3 = has_bias or int(file.key("{arch}.expert_gating_func", 0)) == _SIGMOID
    groups = int(file.key("{arch}.expert_group_count", 0)) or 1
    rotated = int(file.key("{arch}.rope.dimension_count"))
    key_size = int(file.key("{arch}.attention.key_length_mla", file.key("{arch}.attention.key_length")))
    value_size = int(file.key("{arch}.attention.value_length_mla", file.key("{arch}.attention.value_length")))
    return decoder_config(
        file,
        "DeepseekV3ForCausalLM" if is_v3 else "DeepseekV2ForCausalLM",
        "deepseek_v3" if is_v3 else "deepseek_v2",
        head_dim=rotated,
        num_key_value_heads=heads(file),
        hidden_act="silu",
        attention_bias=False,
        q_lora_rank=file.key("{arch}.attention.q_lora_rank", None),
        kv_lora_rank=int(file.key("{arch}.attention.kv_lora_rank")),
        qk_rope_head_dim=rotated,
        qk_nope_head_dim=key_size - rotated,
        v_head_dim=value_size,
        moe_intermediate_size=expert_width(file),
        first_k_dense_replace=int(file.key("{arch}.leading_dense_block_count", 0)),
        moe_layer_freq=1,
        n_shared_experts=int(file.key("{arch}.expert_shared_count", 0)),
        n_group=groups,
        topk_group=int(file.key("{arch}.expert_group_used_count", 0)) or 1,
        topk_method="noaux_tc" if is_v3 else "group_limited_greedy" if groups > 1 else "greedy",
        scoring_func="sigmoid" if is_v3 else "softmax",
        norm_topk_prob=bool(file.key("{arch}.expert_weights_norm", is_v3)),
        routed_scaling_factor=float(file.key("{arch}.expert_weights_scale", 0.0)) or 1.0,
        rope_parameters=_rope(file),
        **expert_config(file, "n_routed_experts"),
    )


_MINIMAX = f"{_LAYER}.block_sparse_moe"
_MINIMAX_NAMES: dict[str, Rule] = {
    **NAMES,
    **QK_NORMS,
    **block_sparse_experts(_MINIMAX),
    "blk.{i}.exp_probs_b": whole("model.layers.{i}.block_sparse_moe.e_score_correction_bias"),
}


def _minimax_m2(file: GgufFile) -> dict[str, Any]:
    return decoder_config(
        file,
        "MiniMaxM2ForCausalLM",
        "minimax_m2",
        hidden_act="silu",
        use_qk_norm=True,
        qk_norm_type="per_layer",
        scoring_func="sigmoid",
        use_routing_bias=True,
        rotary_dim=int(file.key("{arch}.rope.dimension_count")),
        partial_rotary_factor=rotated_part(file),
        rope_parameters=rope_parameters(file) | {"partial_rotary_factor": rotated_part(file)},
        **expert_config(file, "num_local_experts"),
    ) | {"intermediate_size": expert_width(file)}


TABLE = {
    "deepseek2": Architecture(_deepseek, _NAMES),
    "minimax-m2": Architecture(_minimax_m2, _MINIMAX_NAMES),
}
