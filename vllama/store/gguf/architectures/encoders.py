"""Encoders, which embed texts: BERT, XLM-RoBERTa, NomicBERT and ModernBERT."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from vllama.store.gguf.architectures.decoder import has_tensor, heads, tensor_shape, vocabulary_size
from vllama.store.gguf.architectures.rope import rope_parameters
from vllama.store.gguf.architectures.table import Architecture, Found, Rule, split
from vllama.store.gguf.placing import PlacedTensor, place
from vllama.store.gguf.reading import GgufFile

_EPSILON = "{arch}.attention.layer_norm_epsilon"
_XLMR_OFFSET = 2
"""Positions of RoBERTa begin after its padding token, whose id is 1; the converter drops the rows before."""


def _hidden(file: GgufFile) -> int:
    return int(file.key("{arch}.embedding_length"))


def _is_roberta(file: GgufFile) -> bool:
    """Return whether the tokenizer is one of RoBERTa's: the models themselves are the same."""
    return str(file.key("tokenizer.ggml.model", "bert")) != "bert"


def _positions(found: Found) -> Iterable[PlacedTensor]:
    """Place the embedding of positions; RoBERTa's gets back the rows that no text uses."""
    name = found.named("embeddings.position_embeddings")
    missing = _XLMR_OFFSET if _is_roberta(found.file) else 0
    yield place(name, found.tensor, empty_rows=missing)


_ATTENTION = "encoder.layer.{i}.attention.self"
_QKV: Rule = split((f"{_ATTENTION}.query", _hidden), (f"{_ATTENTION}.key", _hidden), (f"{_ATTENTION}.value", _hidden))
_BERT_NAMES: dict[str, Rule] = {
    "token_embd": "embeddings.word_embeddings",
    "token_embd_norm": "embeddings.LayerNorm",
    "token_types": "embeddings.token_type_embeddings",
    "position_embd": _positions,
    "blk.{i}.attn_q": f"{_ATTENTION}.query",
    "blk.{i}.attn_k": f"{_ATTENTION}.key",
    "blk.{i}.attn_v": f"{_ATTENTION}.value",
    "blk.{i}.attn_qkv": _QKV,
    "blk.{i}.attn_output": "encoder.layer.{i}.attention.output.dense",
    "blk.{i}.attn_output_norm": "encoder.layer.{i}.attention.output.LayerNorm",
    "blk.{i}.ffn_up": "encoder.layer.{i}.intermediate.dense",
    "blk.{i}.ffn_down": "encoder.layer.{i}.output.dense",
    "blk.{i}.layer_output_norm": "encoder.layer.{i}.output.LayerNorm",
}
_NOMIC_NAMES: dict[str, Rule] = {
    "token_embd": "embeddings.word_embeddings",
    "token_embd_norm": "emb_ln",
    "token_types": "embeddings.token_type_embeddings",
    "blk.{i}.attn_qkv": "encoder.layers.{i}.attn.Wqkv",
    "blk.{i}.attn_output": "encoder.layers.{i}.attn.out_proj",
    "blk.{i}.attn_output_norm": "encoder.layers.{i}.norm1",
    "blk.{i}.ffn_up": "encoder.layers.{i}.mlp.fc11",
    "blk.{i}.ffn_gate": "encoder.layers.{i}.mlp.fc12",
    "blk.{i}.ffn_down": "encoder.layers.{i}.mlp.fc2",
    "blk.{i}.layer_output_norm": "encoder.layers.{i}.norm2",
}


def _bert(file: GgufFile) -> dict[str, Any]:
    is_roberta = _is_roberta(file)
    positions = tensor_shape(file, "position_embd.weight")[0]
    return {
        "architectures": ["XLMRobertaModel" if is_roberta else "BertModel"],
        "model_type": "xlm-roberta" if is_roberta else "bert",
        "vocab_size": vocabulary_size(file),
        "hidden_size": _hidden(file),
        "num_hidden_layers": int(file.key("{arch}.block_count")),
        "num_attention_heads": heads(file),
        "intermediate_size": int(file.key("{arch}.feed_forward_length")),
        "max_position_embeddings": positions + (_XLMR_OFFSET if is_roberta else 0),
        "type_vocab_size": tensor_shape(file, "token_types.weight")[0] if "token_types.weight" in file.tensors else 1,
        "hidden_act": "gelu",
        "layer_norm_eps": float(file.key(_EPSILON)),
        "position_embedding_type": "absolute",
        "pad_token_id": 1 if is_roberta else 0,
    }


def _nomic_bert(file: GgufFile) -> dict[str, Any]:
    """Return config.json with the names of the model's own code, which vLLM reads, and of transformers."""
    hidden, layers, width = _hidden(file), int(file.key("{arch}.block_count")), file.key("{arch}.feed_forward_length")
    context, epsilon = int(file.key("{arch}.context_length")), float(file.key(_EPSILON))
    has_bias = has_tensor(file, "attn_qkv.bias")
    return {
        "architectures": ["NomicBertModel"],
        "model_type": "nomic_bert",
        "vocab_size": vocabulary_size(file),
        "hidden_size": hidden,
        "n_embd": hidden,
        "num_hidden_layers": layers,
        "n_layer": layers,
        "num_attention_heads": heads(file),
        "n_head": heads(file),
        "intermediate_size": int(width),
        "n_inner": int(width),
        "max_position_embeddings": context,
        "n_positions": context,
        "max_trained_positions": context,
        "type_vocab_size": tensor_shape(file, "token_types.weight")[0],
        "hidden_act": "silu",
        "activation_function": "swiglu",
        "layer_norm_eps": epsilon,
        "layer_norm_epsilon": epsilon,
        "qkv_proj_bias": has_bias,
        "mlp_fc1_bias": has_tensor(file, "ffn_up.bias"),
        "mlp_fc2_bias": has_tensor(file, "ffn_down.bias"),
        "rotary_emb_fraction": 1.0,
        "rotary_emb_interleaved": False,
        "rotary_emb_scale_base": None,
        "causal": False,
        "prenorm": False,
        "pad_token_id": 0,
        "rope_parameters": rope_parameters(file, 1000.0),
    }


def _first_experts(found: Found) -> Iterable[PlacedTensor]:
    """Place the first layers of all experts as one matrix, and their bias, which llama.cpp's converter leaves out."""
    module = f"encoder.layers.{found.block}.mlp.experts"
    experts, width, hidden = found.tensor.shape
    norm = found.file.tensors[f"blk.{found.block}.layer_output_norm.bias"]  # any vector of this length
    yield place(f"{module}.mlp.w1", found.tensor, shape=(experts * width, hidden))
    yield place(f"{module}.bias", norm, change=np.zeros_like)


_NOMIC_MOE_NAMES: dict[str, Rule] = {
    **_NOMIC_NAMES,
    "blk.{i}.ffn_up": "encoder.layers.{i}.mlp.fc1",
    "blk.{i}.ffn_gate_inp": "encoder.layers.{i}.mlp.router.layer",
    "blk.{i}.ffn_up_exps": _first_experts,
    "blk.{i}.ffn_down_exps": lambda found: [
        place(f"encoder.layers.{found.block}.mlp.experts.mlp.w2", found.tensor, transposed=True)
    ],
}


def _nomic_bert_moe(file: GgufFile) -> dict[str, Any]:
    """Return config.json of nomic-embed-text-v2: every other layer is a mixture of experts."""
    config = _nomic_bert(file)
    return config | {
        "hidden_act": "gelu",
        "activation_function": "gelu",
        "num_experts": int(file.key("{arch}.expert_count")),
        "moe_top_k": int(file.key("{arch}.expert_used_count")),
        "moe_every_n_layers": int(file.key("{arch}.moe_every_n_layers")),
        "pad_token_id": 1,
        "rope_parameters": rope_parameters(file),
    }


_MODERN_NAMES: dict[str, Rule] = {
    "token_embd": "embeddings.tok_embeddings",
    "token_embd_norm": "embeddings.norm",
    "output_norm": "final_norm",
    "blk.{i}.attn_norm": "layers.{i}.attn_norm",
    "blk.{i}.attn_qkv": "layers.{i}.attn.Wqkv",
    "blk.{i}.attn_output": "layers.{i}.attn.Wo",
    "blk.{i}.ffn_norm": "layers.{i}.mlp_norm",
    "blk.{i}.ffn_up": "layers.{i}.mlp.Wi",
    "blk.{i}.ffn_down": "layers.{i}.mlp.Wo",
}
_FULL_ATTENTION_EVERY = 3
_GLOBAL_THETA, _LOCAL_THETA = 160_000.0, 10_000.0


def _modern_bert(file: GgufFile) -> dict[str, Any]:
    """Return config.json; in contrast to decoders, the first of a group of layers attends to the whole text."""
    layers = int(file.key("{arch}.block_count"))
    window = int(file.key("{arch}.attention.sliding_window", 0))
    every = int(file.key("{arch}.attention.sliding_window_pattern", _FULL_ATTENTION_EVERY)) if window else 1
    theta = float(file.key("{arch}.rope.freq_base", _GLOBAL_THETA))
    local = float(file.key("{arch}.rope.freq_base_swa", _LOCAL_THETA))
    return {
        "architectures": ["ModernBertModel"],
        "model_type": "modernbert",
        "vocab_size": vocabulary_size(file),
        "hidden_size": _hidden(file),
        "num_hidden_layers": layers,
        "num_attention_heads": heads(file),
        "intermediate_size": int(file.key("{arch}.feed_forward_length")),
        "max_position_embeddings": int(file.key("{arch}.context_length")),
        "hidden_activation": str(file.key("{arch}.hidden_activation", "gelu")),
        "norm_eps": float(file.key(_EPSILON)),
        "norm_bias": "output_norm.bias" in file.tensors,
        "attention_bias": has_tensor(file, "attn_qkv.bias"),
        "mlp_bias": has_tensor(file, "ffn_up.bias"),
        "local_attention": window,
        "global_attn_every_n_layers": every,
        "layer_types": ["sliding_attention" if layer % every else "full_attention" for layer in range(layers)],
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": theta},
            "sliding_attention": {"rope_type": "default", "rope_theta": local},
        },
    }


TABLE = {
    "bert": Architecture(_bert, _BERT_NAMES, is_encoder=True),
    "modern-bert": Architecture(_modern_bert, _MODERN_NAMES, is_encoder=True),
    "nomic-bert": Architecture(_nomic_bert, _NOMIC_NAMES, is_encoder=True),
    "nomic-bert-moe": Architecture(_nomic_bert_moe, _NOMIC_MOE_NAMES, is_encoder=True),
}
