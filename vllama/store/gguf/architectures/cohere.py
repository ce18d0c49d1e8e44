"""Command R, R+ and R7B."""

from __future__ import annotations

from typing import Any

from vllama.store.gguf.architectures.decoder import NAMES, QK_NORMS, decoder_config, has_tensor, layer_types
from vllama.store.gguf.architectures.rope import rope_parameters
from vllama.store.gguf.architectures.table import Architecture
from vllama.store.gguf.reading import GgufFile


def _fields(file: GgufFile) -> dict[str, Any]:
    return {
        "hidden_act": "silu",
        "logit_scale": float(file.key("{arch}.logit_scale")),
        "layer_norm_eps": float(file.key("{arch}.attention.layer_norm_epsilon")),
        "attention_bias": has_tensor(file, "attn_q.bias"),
        "rope_parameters": rope_parameters(file),
    }


def _cohere(file: GgufFile) -> dict[str, Any]:
    return decoder_config(
        file, "CohereForCausalLM", "cohere", use_qk_norm=has_tensor(file, "attn_q_norm.weight"), **_fields(file)
    )


def _cohere2(file: GgufFile) -> dict[str, Any]:
    return decoder_config(
        file,
        "Cohere2ForCausalLM",
        "cohere2",
        sliding_window=int(file.key("{arch}.attention.sliding_window")),
        layer_types=layer_types(file, pattern=4),
        **_fields(file),
    )


TABLE = {"command-r": Architecture(_cohere, {**NAMES, **QK_NORMS}), "cohere2": Architecture(_cohere2, NAMES)}
