"""gpt-oss. Its experts stay one tensor; gates alternate with what they gate, row by row."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vllama.store.gguf.architectures.decoder import NAMES, decoder_config, expert_config, layer_types
from vllama.store.gguf.architectures.rope import rope_parameters
from vllama.store.gguf.architectures.table import Architecture, Found, Rule, ignored, whole
from vllama.store.gguf.placing import PlacedTensor, place
from vllama.store.gguf.reading import GgufFile

_EXPERTS = "model.layers.{i}.mlp.experts"


def _gates(found: Found) -> Iterable[PlacedTensor]:
    """Alternate gates and what they gate; the snapshot has matrices as inputs × outputs."""
    up = found.sibling("ffn_up_exps")
    name = _EXPERTS.format(i=found.block) + ".gate_up_proj"
    count, width = found.tensor.shape[:2]
    if found.suffix == ".bias":
        yield place(f"{name}_bias", found.as_column(), found.as_column(up), shape=(count, 2 * width), alternates=True)
    else:
        shape = (count, found.tensor.shape[2], 2 * width)
        yield place(name, found.tensor, up, shape=shape, alternates=True, transposed=True)


def _down(found: Found) -> Iterable[PlacedTensor]:
    name = _EXPERTS.format(i=found.block) + ".down_proj"
    if found.suffix == ".bias":
        yield place(f"{name}_bias", found.tensor)
    else:
        yield place(name, found.tensor, transposed=True)


_NAMES: dict[str, Rule] = {
    **NAMES,
    "blk.{i}.post_attention_norm": "model.layers.{i}.post_attention_layernorm",
    "blk.{i}.attn_sinks": whole("model.layers.{i}.self_attn.sinks"),
    "blk.{i}.ffn_gate_inp": "model.layers.{i}.mlp.router",
    "blk.{i}.ffn_gate_exps": _gates,
    "blk.{i}.ffn_up_exps": ignored,  # with the gates
    "blk.{i}.ffn_down_exps": _down,
}


def _gpt_oss(file: GgufFile) -> dict[str, Any]:
    rope = rope_parameters(file, 150_000.0)
    if rope["rope_type"] == "yarn":
        rope = {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": False} | rope
    return decoder_config(
        file,
        "GptOssForCausalLM",
        "gpt_oss",
        hidden_act="silu",
        attention_bias=True,
        swiglu_limit=7.0,
        sliding_window=int(file.key("{arch}.attention.sliding_window")),
        layer_types=layer_types(file, pattern=2),
        rope_parameters=rope,
        **expert_config(file, "num_local_experts"),
    ) | {"intermediate_size": file.tensors["blk.0.ffn_down_exps.weight"].shape[2]}


TABLE = {"gpt-oss": Architecture(_gpt_oss, _NAMES)}
