"""Qwen 3 Next and 3.5: linear attention in most layers, and attention with gates in the others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from vllama.store.gguf.architectures.decoder import (
    NAMES,
    decoder_config,
    expert_config,
    expert_width,
    layer_count,
    rotated_part,
)
from vllama.store.gguf.architectures.mamba import convolution, to_logarithm
from vllama.store.gguf.architectures.qwen import EXPERTS, SHARED_EXPERT
from vllama.store.gguf.architectures.rope import rope_parameters
from vllama.store.gguf.architectures.table import Architecture, Found, Rule, expert_rows, ignored, shifted, whole
from vllama.store.gguf.placing import Piece, PlacedTensor, place
from vllama.store.gguf.reading import Array, GgufFile

_LINEAR = "model.layers.{i}.linear_attn"
_PLAIN: dict[str, Rule] = {
    **NAMES,
    "output_norm": shifted("model.norm"),
    "blk.{i}.attn_norm": shifted("model.layers.{i}.input_layernorm"),
    "blk.{i}.post_attention_norm": shifted("model.layers.{i}.post_attention_layernorm"),
    "blk.{i}.attn_q_norm": shifted("model.layers.{i}.self_attn.q_norm"),
    "blk.{i}.attn_k_norm": shifted("model.layers.{i}.self_attn.k_norm"),
    "blk.{i}.ssm_norm": f"{_LINEAR}.norm",
}


def _heads(file: GgufFile) -> tuple[int, int, int, int]:
    """Return the number of heads of keys and of values in linear attention, and their sizes."""
    keys, values = int(file.key("{arch}.ssm.group_count")), int(file.key("{arch}.ssm.time_step_rank"))
    return keys, values, int(file.key("{arch}.ssm.state_size")), int(file.key("{arch}.ssm.inner_size")) // values


def _linear(part: str) -> str:
    return f"{_LINEAR}.{part}"


def _grouped(file: GgufFile, size: int) -> Array:
    """Return the order that puts heads of values beside the head of keys that they belong to.

    The converter of Qwen 3.5 has the first of each group, then the second of each (conversion/qwen.py,
    `_LinearAttentionVReorderBase`).
    """
    keys, values, *_ = _heads(file)
    return np.arange(values * size, dtype=np.int64).reshape(values // keys, keys, size).swapaxes(0, 1).reshape(-1)


def _values_by_group(part: str, *, head: bool, after_keys: bool = False) -> Rule:
    """Return the rule for rows of heads of values, which have one row each unless `head`.

    With `after_keys`, the rows of queries and keys come before them.
    """

    def rule(found: Found) -> Iterable[PlacedTensor]:
        keys, _, key_size, value_size = _heads(found.file)
        before = 2 * keys * key_size if after_keys else 0
        order = np.concatenate(
            [np.arange(before, dtype=np.int64), before + _grouped(found.file, value_size if head else 1)]
        )
        shape = convolution(found.tensor.shape) if part == "conv1d" else None
        yield place(found.named(_linear(part)), Piece(found.tensor, order), shape=shape)

    return rule


def _state(found: Found) -> Iterable[PlacedTensor]:
    order = _grouped(found.file, 1)
    yield place(found.named(_linear("A_log")), Piece(found.tensor, order), change=to_logarithm)


def _time_step(found: Found) -> Iterable[PlacedTensor]:
    name = f"model.layers.{found.block}.linear_attn.dt_bias"
    yield place(name, Piece(found.tensor, _grouped(found.file, 1)))


def _output(found: Found) -> Iterable[PlacedTensor]:
    """Reorder the inputs of the last layer, which are columns."""
    order = _grouped(found.file, _heads(found.file)[3])
    yield place(found.named(_linear("out_proj")), found.tensor, change=lambda values: values[:, order])


_QWEN35_NAMES: dict[str, Rule] = {
    **_PLAIN,
    "blk.{i}.attn_qkv": _values_by_group("in_proj_qkv", head=True, after_keys=True),
    "blk.{i}.attn_gate": _values_by_group("in_proj_z", head=True),
    "blk.{i}.ssm_alpha": _values_by_group("in_proj_a", head=False),
    "blk.{i}.ssm_beta": _values_by_group("in_proj_b", head=False),
    "blk.{i}.ssm_conv1d": _values_by_group("conv1d", head=True, after_keys=True),
    "blk.{i}.ssm_a": _state,
    "blk.{i}.ssm_dt": _time_step,
    "blk.{i}.ssm_out": _output,
}


def _gates(found: Found) -> Iterable[PlacedTensor]:
    """Join the gates of each expert with what they gate."""
    up = found.sibling("ffn_up_exps")
    count, width, inner = found.tensor.shape
    pieces = [expert_rows(tensor, expert) for expert in range(count) for tensor in (found.tensor, up)]
    yield place(f"model.layers.{found.block}.mlp.experts.gate_up_proj", *pieces, shape=(count, 2 * width, inner))


_QWEN35MOE_NAMES: dict[str, Rule] = {
    **_QWEN35_NAMES,
    **EXPERTS,
    **SHARED_EXPERT,
    "blk.{i}.ffn_gate_exps": _gates,
    "blk.{i}.ffn_up_exps": ignored,  # with the gates
    "blk.{i}.ffn_down_exps": whole("model.layers.{i}.mlp.experts.down_proj"),
}


def _by_head(found: Found) -> Iterable[PlacedTensor]:
    """Join queries, keys, values and gates head by head (conversion/qwen.py, `Qwen3NextModel`)."""
    keys, values, key_size, value_size = _heads(found.file)
    gate, width = found.sibling("attn_gate"), values // keys * value_size
    pieces: list[Piece] = []
    for head in range(keys):
        start = 2 * keys * key_size + head * width
        pieces += [
            Piece(found.tensor, slice(head * key_size, (head + 1) * key_size)),
            Piece(found.tensor, slice((keys + head) * key_size, (keys + head + 1) * key_size)),
            Piece(found.tensor, slice(start, start + width)),
            Piece(gate, slice(head * width, (head + 1) * width)),
        ]
    yield place(found.named(_linear("in_proj_qkvz")), *pieces)


_QWEN3NEXT_NAMES: dict[str, Rule] = {
    **_PLAIN,
    **EXPERTS,
    **SHARED_EXPERT,
    "blk.{i}.attn_qkv": _by_head,
    "blk.{i}.attn_gate": ignored,  # with the queries
    "blk.{i}.ssm_in": _linear("in_proj_qkvz"),  # files before the parts were separated
    "blk.{i}.ssm_ba": _linear("in_proj_ba"),
    "blk.{i}.ssm_conv1d": lambda found: [
        place(found.named(_linear("conv1d")), found.tensor, shape=convolution(found.tensor.shape))
    ],
    "blk.{i}.ssm_a": lambda found: [place(found.named(_linear("A_log")), found.tensor, change=to_logarithm)],
    "blk.{i}.ssm_dt": whole("model.layers.{i}.linear_attn.dt_bias"),
    "blk.{i}.ssm_out": _linear("out_proj"),
}


def _fields(file: GgufFile) -> dict[str, Any]:
    keys, values, key_size, value_size = _heads(file)
    interval = int(file.key("{arch}.full_attention_interval", 4))
    layers = layer_count(file)
    linear = file.key("{arch}.attention.recurrent_layers", [(layer + 1) % interval != 0 for layer in range(layers)])
    return {
        "hidden_act": "silu",
        "layer_types": ["linear_attention" if is_linear else "full_attention" for is_linear in linear[:layers]],
        "full_attention_interval": interval,
        "linear_conv_kernel_dim": int(file.key("{arch}.ssm.conv_kernel")),
        "linear_num_key_heads": keys,
        "linear_num_value_heads": values,
        "linear_key_head_dim": key_size,
        "linear_value_head_dim": value_size,
        "attention_bias": False,
        "partial_rotary_factor": rotated_part(file),
        "rope_parameters": rope_parameters(file, 10_000_000.0) | {"partial_rotary_factor": rotated_part(file)},
    }


def _expert_fields(file: GgufFile) -> dict[str, Any]:
    return {
        "moe_intermediate_size": expert_width(file),
        "shared_expert_intermediate_size": file.tensors["blk.0.ffn_up_shexp.weight"].shape[0],
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        **expert_config(file),
    }


def _qwen35(file: GgufFile) -> dict[str, Any]:
    return decoder_config(file, "Qwen3_5ForCausalLM", "qwen3_5_text", **_fields(file))


def _qwen35moe(file: GgufFile) -> dict[str, Any]:
    fields = _fields(file) | _expert_fields(file)
    return decoder_config(file, "Qwen3_5MoeForCausalLM", "qwen3_5_moe_text", **fields)


def _qwen3next(file: GgufFile) -> dict[str, Any]:
    fields = _fields(file) | _expert_fields(file)
    return {"intermediate_size": expert_width(file)} | decoder_config(
        file, "Qwen3NextForCausalLM", "qwen3_next", **fields
    )


TABLE = {
    "qwen35": Architecture(_qwen35, _QWEN35_NAMES),
    "qwen35moe": Architecture(_qwen35moe, _QWEN35MOE_NAMES),
    "qwen3next": Architecture(_qwen3next, _QWEN3NEXT_NAMES),
}
