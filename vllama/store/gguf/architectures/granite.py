"""Granite 3 and 4, and MiniCPM, which computes the same under other names."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from vllama.store.gguf.architectures.decoder import NAMES, decoder_config, expert_config, expert_width, has_tensor
from vllama.store.gguf.architectures.llama import ROTARY
from vllama.store.gguf.architectures.rope import rope_parameters
from vllama.store.gguf.architectures.table import Architecture, Found, Rule, expert_rows, ignored
from vllama.store.gguf.placing import PlacedTensor, place
from vllama.store.gguf.reading import GgufFile

_MOE = "model.layers.{i}.block_sparse_moe"
SHARED = "model.layers.{i}.shared_mlp"


def _experts(found: Found) -> Iterable[PlacedTensor]:
    """Join the gates of all experts with what they gate: for each expert, first the one, then the other."""
    up = found.sibling("ffn_up_exps")
    count, width, inner = found.tensor.shape
    pieces = [expert_rows(tensor, expert) for expert in range(count) for tensor in (found.tensor, up)]
    yield place(found.named(f"{_MOE}.input_linear"), *pieces, shape=(count, 2 * width, inner))


def _shared(found: Found) -> Iterable[PlacedTensor]:
    yield place(found.named(f"{SHARED}.input_linear"), found.tensor, found.sibling("ffn_up_shexp"))


MOE_NAMES: dict[str, Rule] = {
    "blk.{i}.ffn_gate_inp": f"{_MOE}.router.layer",
    "blk.{i}.ffn_gate_exps": _experts,
    "blk.{i}.ffn_up_exps": ignored,  # with the gates
    "blk.{i}.ffn_down_exps": f"{_MOE}.output_linear",
    "blk.{i}.ffn_gate_shexp": _shared,
    "blk.{i}.ffn_up_shexp": ignored,
    "blk.{i}.ffn_down_shexp": f"{SHARED}.output_linear",
}


def multipliers(file: GgufFile) -> dict[str, Any]:
    """Return the fields that all kinds of Granite have beside those of decoders."""
    return {
        "hidden_act": "silu",
        "attention_bias": has_tensor(file, "attn_q.bias"),
        "embedding_multiplier": float(file.key("{arch}.embedding_scale", 1.0)),
        "residual_multiplier": float(file.key("{arch}.residual_scale", 1.0)),
        "attention_multiplier": float(file.key("{arch}.attention.scale", 1.0)),
        "logits_scaling": float(file.key("{arch}.logit_scale", 1.0)),
        "rope_parameters": rope_parameters(file),
    }


def _granite(file: GgufFile) -> dict[str, Any]:
    return decoder_config(
        file,
        "GraniteForCausalLM",
        "granite",
        mlp_bias=has_tensor(file, "ffn_gate.bias"),
        **multipliers(file),
    )


def _granitemoe(file: GgufFile) -> dict[str, Any]:
    is_shared = has_tensor(file, "ffn_gate_shexp.weight")
    config = decoder_config(
        file,
        "GraniteMoeSharedForCausalLM" if is_shared else "GraniteMoeForCausalLM",
        "granitemoeshared" if is_shared else "granitemoe",
        **multipliers(file),
        **expert_config(file, "num_local_experts"),
    ) | {"intermediate_size": expert_width(file)}
    if is_shared:
        config["shared_intermediate_size"] = file.tensors["blk.0.ffn_gate_shexp.weight"].shape[0]
    return config


def _minicpm(file: GgufFile) -> dict[str, Any]:
    """Return config.json of Granite with MiniCPM's scales, whose defaults are in llama.cpp's src/models/minicpm.cpp."""
    config = _granite(file)
    return config | {
        "embedding_multiplier": float(file.key("{arch}.embedding_scale", 12.0)),
        "residual_multiplier": float(file.key("{arch}.residual_scale", 1.4 / math.sqrt(config["num_hidden_layers"]))),
        "attention_multiplier": 1 / math.sqrt(config["head_dim"]),
        "logits_scaling": float(file.key("{arch}.logit_scale", config["hidden_size"] / 256)),
    }


TABLE = {
    "granite": Architecture(_granite, {**NAMES, **ROTARY}),
    "granitemoe": Architecture(_granitemoe, {**NAMES, **ROTARY, **MOE_NAMES}),
    "minicpm": Architecture(_minicpm, {**NAMES, **ROTARY}),
}
