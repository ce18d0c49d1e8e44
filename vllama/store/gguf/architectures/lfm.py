"""LFM 2: short convolutions, and attention in some layers."""

from __future__ import annotations

from typing import Any

from vllama.store.gguf.architectures.decoder import KV_HEADS, decoder_config, expert_config, expert_width
from vllama.store.gguf.architectures.rope import rope_parameters
from vllama.store.gguf.architectures.table import Architecture, Rule, experts, reshaped, whole
from vllama.store.gguf.reading import GgufFile

_LAYER = "model.layers.{i}"
_NAMES: dict[str, Rule] = {
    "token_embd": "model.embed_tokens",
    "token_embd_norm": "model.embedding_norm",  # the last norm, which llama.cpp names like one of the embedding
    "output_norm": "model.embedding_norm",
    "output": "lm_head",
    "blk.{i}.attn_norm": f"{_LAYER}.operator_norm",
    "blk.{i}.attn_q": f"{_LAYER}.self_attn.q_proj",
    "blk.{i}.attn_k": f"{_LAYER}.self_attn.k_proj",
    "blk.{i}.attn_v": f"{_LAYER}.self_attn.v_proj",
    "blk.{i}.attn_output": f"{_LAYER}.self_attn.out_proj",
    "blk.{i}.attn_q_norm": f"{_LAYER}.self_attn.q_layernorm",
    "blk.{i}.attn_k_norm": f"{_LAYER}.self_attn.k_layernorm",
    "blk.{i}.shortconv.conv": reshaped(f"{_LAYER}.conv.conv", lambda shape: (shape[0], 1, shape[1])),
    "blk.{i}.shortconv.in_proj": f"{_LAYER}.conv.in_proj",
    "blk.{i}.shortconv.out_proj": f"{_LAYER}.conv.out_proj",
    "blk.{i}.ffn_norm": f"{_LAYER}.ffn_norm",
    "blk.{i}.ffn_gate": f"{_LAYER}.feed_forward.w1",
    "blk.{i}.ffn_up": f"{_LAYER}.feed_forward.w3",
    "blk.{i}.ffn_down": f"{_LAYER}.feed_forward.w2",
}
_MOE_NAMES: dict[str, Rule] = {
    **_NAMES,
    "blk.{i}.ffn_gate_inp": f"{_LAYER}.feed_forward.gate",
    "blk.{i}.exp_probs_b": whole("model.layers.{i}.feed_forward.expert_bias"),
    "blk.{i}.ffn_gate_exps": experts(_LAYER + ".feed_forward.experts.{e}.w1"),
    "blk.{i}.ffn_up_exps": experts(_LAYER + ".feed_forward.experts.{e}.w3"),
    "blk.{i}.ffn_down_exps": experts(_LAYER + ".feed_forward.experts.{e}.w2"),
}


def _fields(file: GgufFile) -> dict[str, Any]:
    attends = file.key(KV_HEADS)
    layers = int(file.key("{arch}.block_count"))
    counts = attends if isinstance(attends, list) else [attends] * layers
    return {
        "norm_eps": float(file.key("{arch}.attention.layer_norm_rms_epsilon")),
        "layer_types": ["full_attention" if count else "conv" for count in counts],
        "conv_dim": int(file.key("{arch}.embedding_length")),  # vLLM reads it, transformers does not
        "conv_dim_out": int(file.key("{arch}.embedding_length")),
        "conv_L_cache": int(file.key("{arch}.shortconv.l_cache")),
        "conv_bias": "blk.0.shortconv.conv.bias" in file.tensors,
        "rope_parameters": rope_parameters(file, 1_000_000.0),
    }


def _lfm2(file: GgufFile) -> dict[str, Any]:
    config = decoder_config(file, "Lfm2ForCausalLM", "lfm2", **_fields(file))
    return config | {
        "block_auto_adjust_ff_dim": False,
        "block_dim": config["hidden_size"],
        "block_ff_dim": config["intermediate_size"],
    }


def _lfm2moe(file: GgufFile) -> dict[str, Any]:
    return decoder_config(
        file,
        "Lfm2MoeForCausalLM",
        "lfm2_moe",
        moe_intermediate_size=expert_width(file),
        num_dense_layers=int(file.key("{arch}.leading_dense_block_count", 0)),
        norm_topk_prob=True,
        use_expert_bias=any(name.endswith("exp_probs_b.bias") for name in file.tensors),
        routed_scaling_factor=float(file.key("{arch}.expert_weights_scale", 1.0)) or 1.0,
        **_fields(file),
        **expert_config(file),
    )


TABLE = {"lfm2": Architecture(_lfm2, _NAMES), "lfm2moe": Architecture(_lfm2moe, _MOE_NAMES)}
