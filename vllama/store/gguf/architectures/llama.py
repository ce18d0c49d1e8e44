"""Llama, and models that differ from it in names or small things: Mistral, Mixtral, SmolLM, InternLM, EXAONE."""

from __future__ import annotations

from typing import Any

from vllama.store.gguf.architectures.decoder import (
    HEADS,
    KV_HEADS,
    NAMES,
    QK_NORMS,
    decoder_config,
    expert_config,
    has_tensor,
    layer_types,
)
from vllama.store.gguf.architectures.rope import rope_parameters
from vllama.store.gguf.architectures.table import Architecture, Rule, block_sparse_experts, rotary
from vllama.store.gguf.reading import GgufFile

ROTARY: dict[str, Rule] = {
    "blk.{i}.attn_q": rotary("model.layers.{i}.self_attn.q_proj", HEADS),
    "blk.{i}.attn_k": rotary("model.layers.{i}.self_attn.k_proj", KV_HEADS),
}
"""Rules for q and k of the models whose rotary order llama.cpp's converter changes."""

_MIXTRAL = "model.layers.{i}.block_sparse_moe"
_MIXTRAL_NAMES: dict[str, Rule] = {
    **block_sparse_experts(_MIXTRAL),
    "blk.{i}.ffn_gate.{e}": _MIXTRAL + ".experts.{e}.w1",  # old files
    "blk.{i}.ffn_down.{e}": _MIXTRAL + ".experts.{e}.w2",
    "blk.{i}.ffn_up.{e}": _MIXTRAL + ".experts.{e}.w3",
}

_SMOLLM3_WITHOUT_ROPE = 4
"""Every fourth layer of SmolLM3 has no rotary embedding (llama.cpp's src/models/smollm3.cpp)."""


def llama(file: GgufFile) -> dict[str, Any]:
    """Return config.json of Llama, or of Mixtral if the file has experts: both are architecture "llama"."""
    if int(file.key("{arch}.expert_count", 0)):
        return decoder_config(
            file,
            "MixtralForCausalLM",
            "mixtral",
            hidden_act="silu",
            sliding_window=None,
            rope_parameters=rope_parameters(file),
            **expert_config(file, "num_local_experts"),
        )
    return decoder_config(
        file,
        "LlamaForCausalLM",
        "llama",
        hidden_act="silu",
        attention_bias=has_tensor(file, "attn_q.bias"),
        mlp_bias=has_tensor(file, "ffn_gate.bias"),
        rope_parameters=rope_parameters(file),
    )


def _smollm3(file: GgufFile) -> dict[str, Any]:
    config = decoder_config(
        file, "SmolLM3ForCausalLM", "smollm3", hidden_act="silu", rope_parameters=rope_parameters(file)
    )
    layers = config["num_hidden_layers"]
    return config | {
        "attention_bias": has_tensor(file, "attn_q.bias"),
        "mlp_bias": has_tensor(file, "ffn_gate.bias"),
        "use_sliding_window": False,
        "sliding_window": None,
        "layer_types": ["full_attention"] * layers,
        "no_rope_layer_interval": _SMOLLM3_WITHOUT_ROPE,
        "no_rope_layers": [int((layer + 1) % _SMOLLM3_WITHOUT_ROPE != 0) for layer in range(layers)],
    }


def _exaone4(file: GgufFile) -> dict[str, Any]:
    window = int(file.key("{arch}.attention.sliding_window", 0))
    config = decoder_config(
        file,
        "Exaone4ForCausalLM",
        "exaone4",
        hidden_act="silu",
        rope_parameters=rope_parameters(file),
        sliding_window=window or None,
        layer_types=layer_types(file, pattern=4 if window else 1),
    )
    return config | {"sliding_window_pattern": 4 if window else None}


_POST_NORMS: dict[str, Rule] = {
    "blk.{i}.post_attention_norm": "model.layers.{i}.post_attention_layernorm",
    "blk.{i}.post_ffw_norm": "model.layers.{i}.post_feedforward_layernorm",
}


def _arcee(file: GgufFile) -> dict[str, Any]:
    return decoder_config(file, "ArceeForCausalLM", "arcee", hidden_act="relu2", rope_parameters=rope_parameters(file))


def _ernie(file: GgufFile) -> dict[str, Any]:
    return decoder_config(
        file,
        "Ernie4_5ForCausalLM",
        "ernie4_5",
        hidden_act="silu",
        use_bias=has_tensor(file, "attn_q.bias"),
        rope_parameters=rope_parameters(file, 500_000.0),
    )


def _hunyuan(file: GgufFile) -> dict[str, Any]:
    return decoder_config(
        file,
        "HunYuanDenseV1ForCausalLM",
        "hunyuan_v1_dense",
        hidden_act="silu",
        attention_bias=has_tensor(file, "attn_q.bias"),
        rope_parameters=rope_parameters(file),
    )


_HUNYUAN_NORMS: dict[str, Rule] = {
    "blk.{i}.attn_q_norm": "model.layers.{i}.self_attn.query_layernorm",
    "blk.{i}.attn_k_norm": "model.layers.{i}.self_attn.key_layernorm",
}


def _mistral3(file: GgufFile) -> dict[str, Any]:
    """Return config.json of Mistral Small 3, or of Ministral 3, which scales queries by their position."""
    rope = rope_parameters(file, 1_000_000_000.0)
    config = decoder_config(file, "MistralForCausalLM", "mistral", hidden_act="silu", sliding_window=None)
    beta = file.key("{arch}.attention.temperature_scale", file.key("{arch}.rope.scaling_beta", None))
    if beta is not None:
        ollama = file.key("{arch}.rope.scaling.mscale_all_dim", 1.0)
        scale = float(file.key("{arch}.rope.scaling.yarn_log_multiplier", ollama))
        rope |= {"mscale": scale, "mscale_all_dim": scale, "llama_4_scaling_beta": float(beta)}
        config |= {"architectures": ["Ministral3ForCausalLM"], "model_type": "ministral3"}
    return config | {"rope_parameters": rope}


TABLE = {
    "ernie4_5": Architecture(_ernie, NAMES),
    "hunyuan-dense": Architecture(_hunyuan, {**NAMES, **_HUNYUAN_NORMS}),
    "mistral3": Architecture(_mistral3, {**NAMES, **ROTARY}),
    "llama": Architecture(llama, {**NAMES, **ROTARY, **_MIXTRAL_NAMES}),
    "internlm2": Architecture(llama, {**NAMES, **ROTARY}),
    "exaone": Architecture(llama, NAMES),
    "exaone4": Architecture(_exaone4, {**NAMES, **QK_NORMS, **_POST_NORMS}),
    "smollm3": Architecture(_smollm3, {**NAMES, **ROTARY}),
    "arcee": Architecture(_arcee, {**NAMES, **ROTARY}),
}
