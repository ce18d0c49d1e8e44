"""Gemma 3n, without its towers for images and sound."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import NormalDist
from typing import Any

from vllama.store.gguf.architectures.decoder import decoder_config, layer_types, vocabulary_size
from vllama.store.gguf.architectures.gemma import PER_LAYER_NAMES, rope_by_type
from vllama.store.gguf.architectures.table import Architecture, Found, Rule, expert_rows, whole
from vllama.store.gguf.placing import PlacedTensor, place
from vllama.store.gguf.reading import GgufFile

_PATTERN = 5
"""Every fifth layer attends to the whole context (llama.cpp's src/models/gemma3n.cpp)."""

_ALTUP = "model.layers.{i}.altup"


def _separate(name: str) -> Rule:
    """Return the rule for a stack of matrices, which the snapshot has one by one."""

    def rule(found: Found) -> Iterable[PlacedTensor]:
        for number in range(found.tensor.shape[0]):
            yield place(f"model.{name}.{number}.weight", expert_rows(found.tensor, number))

    return rule


_NAMES: dict[str, Rule] = {
    **PER_LAYER_NAMES,
    "altup_proj": _separate("altup_projections"),
    "altup_unembd_proj": _separate("altup_unembed_projections"),
    "blk.{i}.altup_correct_scale": whole("model.layers.{i}.altup.correct_output_scale"),
    "blk.{i}.altup_correct_coef": f"{_ALTUP}.correction_coefs",
    "blk.{i}.altup_predict_coef": f"{_ALTUP}.prediction_coefs",
    "blk.{i}.altup_router": f"{_ALTUP}.modality_router",
    "blk.{i}.altup_router_norm": f"{_ALTUP}.router_norm",
    "blk.{i}.laurel_l": "model.layers.{i}.laurel.linear_left",
    "blk.{i}.laurel_r": "model.layers.{i}.laurel.linear_right",
    "blk.{i}.laurel_post_norm": "model.layers.{i}.laurel.post_laurel_norm",
}


def _gemma3n(file: GgufFile) -> dict[str, Any]:
    config = decoder_config(
        file,
        "Gemma3nForCausalLM",
        "gemma3n_text",
        hidden_activation="gelu_pytorch_tanh",
        tie_word_embeddings=True,
        final_logit_softcapping=float(file.key("{arch}.final_logit_softcapping", 30.0)),
        sliding_window=int(file.key("{arch}.attention.sliding_window")),
        layer_types=layer_types(file, pattern=_PATTERN),
        altup_active_idx=int(file.key("{arch}.altup.active_idx")),
        altup_num_inputs=int(file.key("{arch}.altup.num_inputs")),
        altup_correct_scale=True,
        altup_coef_clip=120.0,
        hidden_size_per_layer_input=int(file.key("{arch}.embedding_length_per_layer_input")),
        vocab_size_per_layer_input=vocabulary_size(file),
        num_kv_shared_layers=int(file.key("{arch}.attention.shared_kv_layers")),
        laurel_rank=file.tensors["blk.0.laurel_l.weight"].shape[0],
        rope_parameters=rope_by_type(file),
    )
    layers = config["num_hidden_layers"]
    # The file has how many standard deviations a value must be above the mean, the configuration the share below.
    scales = file.key("{arch}.activation_sparsity_scale", [float("-inf")] * layers)
    shares = [round(NormalDist().cdf(scale), 4) for scale in scales]
    return config | {"intermediate_size": [config["intermediate_size"]] * layers, "activation_sparsity_pattern": shares}


TABLE = {"gemma3n": Architecture(_gemma3n, _NAMES)}
