"""Llama 4 without its vision tower: most layers attend to a chunk of the text, and some or all have experts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vllama.store.gguf.architectures.decoder import NAMES, decoder_config, expert_config, layer_count
from vllama.store.gguf.architectures.rope import rope_parameters
from vllama.store.gguf.architectures.table import Architecture, Found, Rule, expert_rows, ignored
from vllama.store.gguf.placing import PlacedTensor, place
from vllama.store.gguf.reading import GgufFile

_CHUNK, _TEMPERATURE_SCALE, _WITHOUT_ROPE = 8192, 0.1, 4
_EXPERTS_WITHOUT_NORMS = 128
"""Of Maverick, whose queries and keys have no norms (these are llama.cpp's constants: src/models/llama4.cpp)."""

_FEED_FORWARD = "model.layers.{i}.feed_forward"


def _fused(found: Found) -> Iterable[PlacedTensor]:
    """Place gates and what they gate of all experts in one tensor, with inputs as rows."""
    gates, ups = found.tensor, found.sibling("ffn_up_exps")
    experts, width, hidden = gates.shape
    pieces = [expert_rows(tensor, expert) for expert in range(experts) for tensor in (gates, ups)]
    name = f"{_FEED_FORWARD}.experts.gate_up_proj".format(i=found.block)
    yield place(name, *pieces, shape=(experts, hidden, 2 * width), transposed=True)


_NAMES: dict[str, Rule] = {
    **NAMES,
    "blk.{i}.ffn_gate": f"{_FEED_FORWARD}.gate_proj",
    "blk.{i}.ffn_up": f"{_FEED_FORWARD}.up_proj",
    "blk.{i}.ffn_down": f"{_FEED_FORWARD}.down_proj",
    "blk.{i}.ffn_gate_inp": f"{_FEED_FORWARD}.router",
    "blk.{i}.ffn_gate_shexp": f"{_FEED_FORWARD}.shared_expert.gate_proj",
    "blk.{i}.ffn_up_shexp": f"{_FEED_FORWARD}.shared_expert.up_proj",
    "blk.{i}.ffn_down_shexp": f"{_FEED_FORWARD}.shared_expert.down_proj",
    "blk.{i}.ffn_gate_exps": _fused,
    "blk.{i}.ffn_up_exps": ignored,  # placed with the gates
    "blk.{i}.ffn_down_exps": lambda found: [
        place(f"{_FEED_FORWARD}.experts.down_proj".format(i=found.block), found.tensor, transposed=True)
    ],
}


def _llama4(file: GgufFile) -> dict[str, Any]:
    layers = layer_count(file)
    with_rope = [int((layer + 1) % _WITHOUT_ROPE != 0) for layer in range(layers)]
    config = decoder_config(
        file,
        "Llama4ForCausalLM",
        "llama4_text",
        hidden_act="silu",
        rope_parameters=rope_parameters(file, 500_000.0),
        interleave_moe_layer_step=int(file.key("{arch}.interleave_moe_layer_step")),
        no_rope_layers=with_rope,
        layer_types=["chunked_attention" if turns else "full_attention" for turns in with_rope],
        attention_chunk_size=_CHUNK,
        attn_temperature_tuning=True,
        floor_scale=_CHUNK,
        attn_scale=_TEMPERATURE_SCALE,
        **expert_config(file, "num_local_experts"),
    )
    return config | {
        "intermediate_size": int(file.key("{arch}.expert_feed_forward_length")),
        "intermediate_size_mlp": config["intermediate_size"],
        "use_qk_norm": config["num_local_experts"] != _EXPERTS_WITHOUT_NORMS,
    }


TABLE = {"llama4": Architecture(_llama4, _NAMES)}
