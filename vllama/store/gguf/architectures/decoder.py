"""What most decoders have in common: fields of config.json, and the names of Llama's layers, which others took over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllama.errors import StoreError
from vllama.store.gguf.architectures.table import Rule, ignored
from vllama.store.gguf.reading import GgufFile

HEADS, KV_HEADS = "{arch}.attention.head_count", "{arch}.attention.head_count_kv"


def decoder_config(file: GgufFile, architecture: str, model_type: str, **more: Any) -> dict[str, Any]:
    """Return the fields of config.json that decoders share, under their usual names; `more` adds and replaces."""
    config: dict[str, Any] = {
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": vocabulary_size(file),
        "hidden_size": int(file.key("{arch}.embedding_length")),
        "num_hidden_layers": layer_count(file),
        "num_attention_heads": heads(file),
        "num_key_value_heads": kv_heads(file),
        "max_position_embeddings": int(file.key("{arch}.context_length")),
        "tie_word_embeddings": is_tied(file),
        "head_dim": head_size(file),
    }
    if (width := file.layer_value("{arch}.feed_forward_length", None)) is not None:
        config["intermediate_size"] = int(width)
    if (epsilon := file.key("{arch}.attention.layer_norm_rms_epsilon", None)) is not None:
        config["rms_norm_eps"] = float(epsilon)
    return config | more


def layer_count(file: GgufFile) -> int:
    """Return the number of layers without those that only predict further tokens, which are not converted."""
    return int(file.key("{arch}.block_count")) - int(file.key("{arch}.nextn_predict_layers", 0))


def vocabulary_size(file: GgufFile) -> int:
    """Return the number of rows of the embedding, which may be more than the tokenizer has."""
    return tensor_shape(file, "token_embd.weight")[0]


def tensor_shape(file: GgufFile, name: str) -> tuple[int, ...]:
    """Return the shape of a tensor. Raises StoreError if the file lacks it."""
    if name not in file.tensors:
        raise StoreError(f"the GGUF file lacks the tensor {name}")
    return file.tensors[name].shape


def is_tied(file: GgufFile) -> bool:
    """Return whether the embedding is the head as well."""
    return "output.weight" not in file.tensors


def heads(file: GgufFile) -> int:
    """Return the number of heads of queries in layers with attention."""
    return _of_attention(file, HEADS, file.key(HEADS))


def kv_heads(file: GgufFile) -> int:
    """Return the number of heads of keys and values in layers with attention."""
    return _of_attention(file, KV_HEADS, file.key(KV_HEADS, file.key(HEADS)))


def _of_attention(file: GgufFile, key: str, value: Any) -> int:
    """Return the value of the layers with attention; the others have 0. Raises StoreError if they differ."""
    different = {int(count) for count in (value if isinstance(value, list) else [value])} - {0}
    if len(different) != 1:
        raise StoreError(f"the key {key.replace('{arch}', file.architecture)} differs between layers")
    return different.pop()


def head_size(file: GgufFile) -> int:
    """Return the number of values in a head."""
    return int(file.key("{arch}.attention.key_length", int(file.key("{arch}.embedding_length")) // heads(file)))


def layer_types(file: GgufFile, *, pattern: int) -> list[str]:
    """Return which layers have a sliding window: all except every `pattern`-th, unless the file names them.

    The key `attention.sliding_window_pattern` has the interval, or whether each layer slides.
    """
    layers = layer_count(file)
    told = file.key("{arch}.attention.sliding_window_pattern", pattern)
    if isinstance(told, list):
        slides = [bool(value) for value in told[:layers]]
        slides += [False] * (layers - len(slides))
    else:
        slides = [int(told) > 0 and (layer + 1) % int(told) != 0 for layer in range(layers)]
    return ["sliding_attention" if slide else "full_attention" for slide in slides]


def rotated_part(file: GgufFile) -> float:
    """Return which part of a head is rotated."""
    size = head_size(file)
    return float(file.key("{arch}.rope.dimension_count", size)) / size


def expert_config(file: GgufFile, experts: str = "num_experts") -> dict[str, Any]:
    """Return the fields of a mixture of experts; `experts` is the model's name for their number."""
    return {
        experts: int(file.key("{arch}.expert_count")),
        "num_experts_per_tok": int(file.key("{arch}.expert_used_count")),
    }


def expert_width(file: GgufFile) -> int:
    """Return the intermediate size of an expert, from the first layer that has experts."""
    for name, tensor in file.tensors.items():
        if name.endswith(("ffn_gate_exps.weight", "ffn_up_exps.weight")):
            return tensor.shape[1]
    raise StoreError("the GGUF file has no experts")


def has_tensor(file: GgufFile, suffix: str) -> bool:
    """Return whether the first layer has a tensor with this name: "attn_q.bias"."""
    return f"blk.0.{suffix}" in file.tensors


NAMES: Mapping[str, Rule] = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "rope_freqs": ignored,  # in `rope_parameters`
    "rope_factors_long": ignored,
    "rope_factors_short": ignored,
    "blk.{i}.attn_rot_embd": ignored,  # inverse frequencies in old files
    "blk.{i}.attn_norm": "model.layers.{i}.input_layernorm",
    "blk.{i}.attn_q": "model.layers.{i}.self_attn.q_proj",
    "blk.{i}.attn_k": "model.layers.{i}.self_attn.k_proj",
    "blk.{i}.attn_v": "model.layers.{i}.self_attn.v_proj",
    "blk.{i}.attn_output": "model.layers.{i}.self_attn.o_proj",
    "blk.{i}.ffn_norm": "model.layers.{i}.post_attention_layernorm",
    "blk.{i}.ffn_gate": "model.layers.{i}.mlp.gate_proj",
    "blk.{i}.ffn_up": "model.layers.{i}.mlp.up_proj",
    "blk.{i}.ffn_down": "model.layers.{i}.mlp.down_proj",
}
"""Names of a plain decoder with gated layers, as Llama has them."""

QK_NORMS: Mapping[str, Rule] = {
    "blk.{i}.attn_q_norm": "model.layers.{i}.self_attn.q_norm",
    "blk.{i}.attn_k_norm": "model.layers.{i}.self_attn.k_norm",
}
