"""OLMo 1 to 3 and OLMoE."""

from __future__ import annotations

from typing import Any

from vllama.store.gguf.architectures.decoder import (
    NAMES,
    QK_NORMS,
    decoder_config,
    expert_config,
    expert_width,
    layer_types,
)
from vllama.store.gguf.architectures.llama import ROTARY
from vllama.store.gguf.architectures.qwen import EXPERTS
from vllama.store.gguf.architectures.rope import rope_parameters
from vllama.store.gguf.architectures.table import Architecture, Rule
from vllama.store.gguf.reading import GgufFile

_OLMO2_NAMES: dict[str, Rule] = {
    **NAMES,
    **QK_NORMS,
    "blk.{i}.post_attention_norm": "model.layers.{i}.post_attention_layernorm",
    "blk.{i}.post_ffw_norm": "model.layers.{i}.post_feedforward_layernorm",
}


def _olmo(file: GgufFile) -> dict[str, Any]:
    return decoder_config(
        file,
        "OlmoForCausalLM",
        "olmo",
        hidden_act="silu",
        clip_qkv=file.key("{arch}.attention.clamp_kqv", None),
        rope_parameters=rope_parameters(file),
    )


def _olmo2(file: GgufFile) -> dict[str, Any]:
    """Return config.json of OLMo 2, or of OLMo 3, which is the same with a sliding window."""
    config = decoder_config(file, "Olmo2ForCausalLM", "olmo2", hidden_act="silu", rope_parameters=rope_parameters(file))
    window = int(file.key("{arch}.attention.sliding_window", 0))
    if window:
        config |= {
            "architectures": ["Olmo3ForCausalLM"],
            "model_type": "olmo3",
            "sliding_window": window,
            "layer_types": layer_types(file, pattern=4),
        }
    return config


def _olmoe(file: GgufFile) -> dict[str, Any]:
    width = expert_width(file)
    return decoder_config(
        file,
        "OlmoeForCausalLM",
        "olmoe",
        hidden_act="silu",
        norm_topk_prob=False,
        rope_parameters=rope_parameters(file),
        **expert_config(file),
    ) | {"intermediate_size": width}


TABLE = {
    "olmo": Architecture(_olmo, {**NAMES, **ROTARY}),
    "olmo2": Architecture(_olmo2, _OLMO2_NAMES),
    "olmoe": Architecture(_olmoe, {**NAMES, **QK_NORMS, **EXPERTS}),
}
