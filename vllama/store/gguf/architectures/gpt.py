"""Decoders without gated layers and with layer norms: GPT-2, BLOOM, Falcon, StarCoder 2, Nemotron, and StableLM."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from vllama.errors import StoreError
from vllama.store.gguf.architectures.decoder import (
    NAMES,
    decoder_config,
    has_tensor,
    head_size,
    heads,
    is_tied,
    kv_heads,
    rotated_part,
    vocabulary_size,
)
from vllama.store.gguf.architectures.rope import rope_parameters
from vllama.store.gguf.architectures.table import Architecture, Found, Rule, ignored, shifted
from vllama.store.gguf.placing import Piece, PlacedTensor, place
from vllama.store.gguf.reading import GgufFile

_EPSILON = "{arch}.attention.layer_norm_epsilon"


def _transposed(pattern: str) -> Rule:
    """Return the rule for a layer of GPT-2, whose matrices Hugging Face stores as inputs × outputs."""

    def rule(found: Found) -> Iterable[PlacedTensor]:
        yield place(found.named(pattern), found.tensor, transposed=len(found.tensor.shape) == 2)

    return rule


_GPT2_NAMES: dict[str, Rule] = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
    "blk.{i}.attn_norm": "transformer.h.{i}.ln_1",
    "blk.{i}.attn_qkv": _transposed("transformer.h.{i}.attn.c_attn"),
    "blk.{i}.attn_output": _transposed("transformer.h.{i}.attn.c_proj"),
    "blk.{i}.ffn_norm": "transformer.h.{i}.ln_2",
    "blk.{i}.ffn_up": _transposed("transformer.h.{i}.mlp.c_fc"),
    "blk.{i}.ffn_down": _transposed("transformer.h.{i}.mlp.c_proj"),
}


def _gpt2(file: GgufFile) -> dict[str, Any]:
    context = int(file.key("{arch}.context_length"))
    output, embedding = file.tensors.get("output.weight"), file.tensors["token_embd.weight"]
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": vocabulary_size(file),
        "n_embd": int(file.key("{arch}.embedding_length")),
        "n_layer": int(file.key("{arch}.block_count")),
        "n_head": heads(file),
        "n_inner": int(file.key("{arch}.feed_forward_length")),
        "n_positions": context,
        "max_position_embeddings": context,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": float(file.key(_EPSILON)),
        "tie_word_embeddings": output is None or np.array_equal(output.blocks, embedding.blocks),
    }


def _interleaved_qkv(pattern: str) -> Rule:
    """Return the rule for q, k and v that the snapshot has head by head: BLOOM, and Falcon by groups of heads.

    The file has all queries, then all keys, then all values (conversion/falcon.py, conversion/bloom.py).
    """

    def rule(found: Found) -> Iterable[PlacedTensor]:
        groups, size = kv_heads(found.file), head_size(found.file)
        queries = heads(found.file)
        if (queries + 2 * groups) * size != found.tensor.blocks.shape[0] or queries % groups:
            raise StoreError(f"{found.tensor.name} does not have rows for {queries} and {groups} heads")
        rows = np.arange(found.tensor.blocks.shape[0], dtype=np.int64).reshape(-1, size)
        q, k, v = np.split(rows, [queries, queries + groups])
        order = np.concatenate([q.reshape(groups, -1), k.reshape(groups, -1), v.reshape(groups, -1)], axis=1)
        yield place(found.named(pattern), Piece(found.tensor, order.reshape(-1)))

    return rule


_BLOOM_NAMES: dict[str, Rule] = {
    "token_embd": "transformer.word_embeddings",
    "token_embd_norm": "transformer.word_embeddings_layernorm",
    "output_norm": "transformer.ln_f",
    "output": ignored,  # always tied
    "blk.{i}.attn_norm": "transformer.h.{i}.input_layernorm",
    "blk.{i}.attn_qkv": _interleaved_qkv("transformer.h.{i}.self_attention.query_key_value"),
    "blk.{i}.attn_output": "transformer.h.{i}.self_attention.dense",
    "blk.{i}.ffn_norm": "transformer.h.{i}.post_attention_layernorm",
    "blk.{i}.ffn_up": "transformer.h.{i}.mlp.dense_h_to_4h",
    "blk.{i}.ffn_down": "transformer.h.{i}.mlp.dense_4h_to_h",
}


def _bloom(file: GgufFile) -> dict[str, Any]:
    return {
        "architectures": ["BloomForCausalLM"],
        "model_type": "bloom",
        "vocab_size": vocabulary_size(file),
        "hidden_size": int(file.key("{arch}.embedding_length")),
        "n_layer": int(file.key("{arch}.block_count")),
        "n_head": heads(file),
        "seq_length": int(file.key("{arch}.context_length")),
        "max_position_embeddings": int(file.key("{arch}.context_length")),
        "layer_norm_epsilon": float(file.key(_EPSILON)),
    }


def _falcon_norm(found: Found) -> Iterable[PlacedTensor]:
    """Name the norm: the models with a second one use the first for the feed-forward layer."""
    has_two = f"blk.{found.block}.attn_norm_2.weight" in found.file.tensors
    yield place(found.named("transformer.h.{i}." + ("ln_mlp" if has_two else "input_layernorm")), found.tensor)


_FALCON_NAMES: dict[str, Rule] = {
    "token_embd": "transformer.word_embeddings",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
    "blk.{i}.attn_norm": _falcon_norm,
    "blk.{i}.attn_norm_2": "transformer.h.{i}.ln_attn",
    "blk.{i}.attn_qkv": _interleaved_qkv("transformer.h.{i}.self_attention.query_key_value"),
    "blk.{i}.attn_output": "transformer.h.{i}.self_attention.dense",
    "blk.{i}.ffn_up": "transformer.h.{i}.mlp.dense_h_to_4h",
    "blk.{i}.ffn_down": "transformer.h.{i}.mlp.dense_4h_to_h",
}


def _falcon(file: GgufFile) -> dict[str, Any]:
    groups = kv_heads(file)
    return {
        "architectures": ["FalconForCausalLM"],
        "model_type": "falcon",
        "vocab_size": vocabulary_size(file),
        "hidden_size": int(file.key("{arch}.embedding_length")),
        "ffn_hidden_size": int(file.key("{arch}.feed_forward_length")),
        "num_hidden_layers": int(file.key("{arch}.block_count")),
        "num_attention_heads": heads(file),
        "num_kv_heads": groups,
        "multi_query": groups == 1,
        "new_decoder_architecture": has_tensor(file, "attn_norm_2.weight"),
        "parallel_attn": True,
        "bias": has_tensor(file, "attn_qkv.bias"),
        "alibi": False,
        "layer_norm_epsilon": float(file.key(_EPSILON)),
        "max_position_embeddings": int(file.key("{arch}.context_length")),
        "tie_word_embeddings": is_tied(file),
        "rope_parameters": rope_parameters(file),
    }


_STARCODER2_NAMES: dict[str, Rule] = {
    **NAMES,
    "blk.{i}.ffn_up": "model.layers.{i}.mlp.c_fc",
    "blk.{i}.ffn_down": "model.layers.{i}.mlp.c_proj",
}


def _starcoder2(file: GgufFile) -> dict[str, Any]:
    return decoder_config(
        file,
        "Starcoder2ForCausalLM",
        "starcoder2",
        hidden_act="gelu_pytorch_tanh",
        norm_epsilon=float(file.key(_EPSILON)),
        norm_type="layer_norm",
        use_bias=has_tensor(file, "attn_q.bias"),
        sliding_window=int(file.key("{arch}.attention.sliding_window", 0)) or None,
        rope_parameters=rope_parameters(file),
    )


def _norm_plus_one(pattern: str) -> Rule:
    """Return the rule for a norm of Nemotron: the weight is stored + 1, the bias as it is."""
    weight = shifted(pattern)

    def rule(found: Found) -> Iterable[PlacedTensor]:
        if found.suffix == ".weight" and callable(weight):
            return weight(found)
        return [place(found.named(pattern), found.tensor)]

    return rule


_NEMOTRON_NAMES: dict[str, Rule] = {
    **NAMES,
    "output_norm": _norm_plus_one("model.norm"),
    "blk.{i}.attn_norm": _norm_plus_one("model.layers.{i}.input_layernorm"),
    "blk.{i}.ffn_norm": _norm_plus_one("model.layers.{i}.post_attention_layernorm"),
}


def _nemotron(file: GgufFile) -> dict[str, Any]:
    return decoder_config(
        file,
        "NemotronForCausalLM",
        "nemotron",
        hidden_act="relu2",
        norm_eps=float(file.key(_EPSILON)),
        attention_bias=has_tensor(file, "attn_q.bias"),
        mlp_bias=has_tensor(file, "ffn_up.bias"),
        partial_rotary_factor=rotated_part(file),
        rope_parameters=rope_parameters(file) | {"partial_rotary_factor": rotated_part(file)},
    )


def _stablelm(file: GgufFile) -> dict[str, Any]:
    """Return config.json of StableLM. Raises StoreError for the 12B, whose norms of heads vLLM does not have."""
    if has_tensor(file, "attn_q_norm.weight") or not has_tensor(file, "ffn_norm.weight"):
        raise StoreError("this StableLM has norms of heads and parallel layers, which vLLM does not support")
    return decoder_config(
        file,
        "StableLmForCausalLM",
        "stablelm",
        hidden_act="silu",
        layer_norm_eps=float(file.key(_EPSILON)),
        use_qkv_bias=has_tensor(file, "attn_q.bias"),
        use_parallel_residual=False,
        qk_layernorm=False,
        partial_rotary_factor=rotated_part(file),
        rope_parameters=rope_parameters(file) | {"partial_rotary_factor": rotated_part(file)},
    )


TABLE = {
    "bloom": Architecture(_bloom, _BLOOM_NAMES),
    "falcon": Architecture(_falcon, _FALCON_NAMES),
    "gpt2": Architecture(_gpt2, _GPT2_NAMES),
    "nemotron": Architecture(_nemotron, _NEMOTRON_NAMES),
    "stablelm": Architecture(_stablelm, NAMES),
    "starcoder2": Architecture(_starcoder2, _STARCODER2_NAMES),
}
