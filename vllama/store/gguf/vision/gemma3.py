"""Gemma 3 with SigLIP as its tower."""

from __future__ import annotations

import math
from collections.abc import Mapping

from vllama.store.gguf.architectures.table import Rule, shifted, whole
from vllama.store.gguf.vision.table import (
    BILINEAR,
    Json,
    TextModel,
    VisionModel,
    clip_encoder,
    preprocessor,
    spelled,
)
from vllama.store.gguf.vision.tower import Tower

_IMAGE = "<image_soft_token>"
_GREY = (0.5, 0.5, 0.5)
_POOLED = 4
"""Side of the square of patches that become one vector, unless the file has `projector.scale_factor`."""

_TOWER = "vision_tower.vision_model"
_LAYER = f"{_TOWER}.encoder.layers.{{i}}"
_PROJECTOR = "multi_modal_projector"
_TENSORS: dict[str, Rule] = {
    **clip_encoder(_TOWER),
    "v.post_ln": f"{_TOWER}.post_layernorm",
    "v.blk.{i}.mlp.fc1": f"{_LAYER}.mlp.fc1",  # Ollama's converter
    "v.blk.{i}.mlp.fc2": f"{_LAYER}.mlp.fc2",
    "mm.input_projection": whole(f"{_PROJECTOR}.mm_input_projection_weight"),
    "mm.soft_emb_norm": shifted(f"{_PROJECTOR}.mm_soft_emb_norm"),
}
_OLLAMA = {
    "v.patch_embd": "v.patch_embedding",
    "v.position_embd": "v.position_embedding",
    "v.post_ln": "v.post_layernorm",
    "v.blk.{i}.ln1": "v.blk.{i}.layer_norm1",
    "v.blk.{i}.ln2": "v.blk.{i}.layer_norm2",
    "v.blk.{i}.attn_out": "v.blk.{i}.attn_output",
    "mm.input_projection": "mm.mm_input_projection",
    "mm.soft_emb_norm": "mm.mm_soft_emb_norm",
}


def _configure(tower: Tower, text: TextModel) -> Json:
    return {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "mm_tokens_per_image": _vectors(tower),
        "boi_token_index": text.id_of("<start_of_image>"),
        "eoi_token_index": text.id_of("<end_of_image>"),
        "image_token_index": text.id_of(_IMAGE),
        "vision_config": {
            "model_type": "siglip_vision_model",
            **tower.sizes(),
            "hidden_act": "gelu_pytorch_tanh",
            "layer_norm_eps": tower.real("attention.layer_norm_epsilon", 1e-6),
            "vision_use_head": False,
        },
    }


def _vectors(tower: Tower) -> int:
    """Return the number of vectors that an image becomes."""
    if not tower.has_own_file:
        return int(tower.file.key("{arch}.mm.tokens_per_image", tower.file.key("{arch}.mm_tokens_per_image", 256)))
    side = tower.number("image_size") // tower.number("patch_size")
    return int(math.pow(side // tower.number("projector.scale_factor", _POOLED), 2))


def _files(tower: Tower, config: Json) -> Mapping[str, Json]:
    side, vectors = config["vision_config"]["image_size"], config["mm_tokens_per_image"]
    return {
        "preprocessor_config.json": preprocessor(
            tower,
            _GREY,
            _GREY,
            image_processor_type="Gemma3ImageProcessor",
            processor_class="Gemma3Processor",
            resample=BILINEAR,
            size={"height": side, "width": side},
            image_seq_length=vectors,
        ),
        "processor_config.json": {"processor_class": "Gemma3Processor", "image_seq_length": vectors},
    }


TABLE = {
    "gemma3": VisionModel(
        _configure,
        _files,
        spelled(_TENSORS, _OLLAMA),
        _IMAGE,
        tokens={
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
            "image_token": _IMAGE,
        },
    )
}
