"""A mixture of experts of any size with random blocks, to measure memory and speed: Qwen 3's, in the types of Q4_K_M.

Its text has no meaning. Vocabulary and tokenizer are those of another GGUF file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType

Array = npt.NDArray[Any]
_T = GGMLQuantizationType
_SEEDS = np.random.default_rng(1)


def write_random_experts(
    vocabulary: Path, target: Path, *, layers: int = 16, hidden: int = 2048, inner: int = 768, experts: int = 64
) -> None:
    """Write the file: 5 billion parameters by default, of which each token uses a seventh."""
    reader = gguf.GGUFReader(vocabulary)
    writer = gguf.GGUFWriter(target, "qwen3moe")
    for field in reader.fields.values():
        if field.name.startswith("tokenizer."):
            inner_type = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(field.name, field.contents(), field.types[0], inner_type)
    heads, kv_heads, head = 32, 4, 128
    for key, value in {
        "context_length": 32768,
        "embedding_length": hidden,
        "block_count": layers,
        "feed_forward_length": 4 * hidden,
        "expert_feed_forward_length": inner,
        "expert_count": experts,
        "expert_used_count": 8,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.key_length": head,
        "attention.value_length": head,
    }.items():
        writer.add_uint32(f"qwen3moe.{key}", value)
    writer.add_float32("qwen3moe.attention.layer_norm_rms_epsilon", 1e-6)
    writer.add_float32("qwen3moe.rope.freq_base", 1e6)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_K_M)
    tokens = next(tensor for tensor in reader.tensors if tensor.name == "token_embd.weight").shape[1]

    def add(name: str, kind: GGMLQuantizationType, *shape: int) -> None:
        blocks = _blocks(kind, *shape)
        writer.add_tensor(name, blocks, raw_shape=blocks.shape, raw_dtype=kind)

    def add_floats(name: str, values: Array) -> None:
        writer.add_tensor(name, values.astype(np.float32))

    add("token_embd.weight", _T.Q4_K, int(tokens), hidden)
    add("output.weight", _T.Q6_K, int(tokens), hidden)
    add_floats("output_norm.weight", np.ones(hidden))
    for layer in range(layers):
        block = f"blk.{layer}"
        more = _T.Q6_K if layer % 2 else _T.Q4_K
        add(f"{block}.attn_q.weight", _T.Q4_K, heads * head, hidden)
        add(f"{block}.attn_k.weight", _T.Q4_K, kv_heads * head, hidden)
        add(f"{block}.attn_v.weight", more, kv_heads * head, hidden)
        add(f"{block}.attn_output.weight", _T.Q4_K, hidden, heads * head)
        for name, size in (("attn_norm", hidden), ("ffn_norm", hidden), ("attn_q_norm", head), ("attn_k_norm", head)):
            add_floats(f"{block}.{name}.weight", np.ones(size))
        add_floats(f"{block}.ffn_gate_inp.weight", _SEEDS.standard_normal((experts, hidden)) * 0.02)
        add(f"{block}.ffn_gate_exps.weight", _T.Q4_K, experts, inner, hidden)
        add(f"{block}.ffn_up_exps.weight", _T.Q4_K, experts, inner, hidden)
        add(f"{block}.ffn_down_exps.weight", more, experts, hidden, inner)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _blocks(kind: GGMLQuantizationType, *shape: int) -> Array:
    """Return random blocks whose weights are about 0.015 on average, around zero."""
    values, size = gguf.GGML_QUANT_SIZES[kind]
    count = int(np.prod(shape)) // values
    data = np.frombuffer(_SEEDS.bytes(count * size), np.uint8).reshape(count, size).copy()
    halves = {_T.Q4_K: ((0, 1e-4), (2, 7.5e-4)), _T.Q6_K: ((208, 1e-5),)}[kind]
    for start, scale in halves:
        data[:, start : start + 2] = np.array([scale], "<f2").view(np.uint8)
    return data.reshape(*shape[:-1], -1)
