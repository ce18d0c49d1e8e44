"""LLaVA 1.5 and 1.6: CLIP as the tower, and two layers that lead from it to a Llama.

Their projectors come from llama.cpp's old scripts (tools/mtmd/legacy-models), which leave out the tower's last layer:
LLaVA uses what the layer before it returns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllama.errors import StoreError
from vllama.store.gguf.architectures.table import Rule, ignored, whole
from vllama.store.gguf.vision.table import (
    BICUBIC,
    CLIP_MEAN,
    CLIP_STD,
    Json,
    TextModel,
    VisionModel,
    clip_encoder,
    numbered,
    preprocessor,
)
from vllama.store.gguf.vision.tower import Tower

_IMAGE = "<image>"
_TOWER = "vision_tower.vision_model"
_PROJECTOR = "multi_modal_projector"
_MOST_PINPOINTS = 256
_TENSORS: dict[str, Rule] = {
    "v.class_embd": f"{_TOWER}.embeddings.class_embedding",
    **clip_encoder(_TOWER),
    "v.pre_ln": f"{_TOWER}.pre_layrnorm",  # CLIP's own spelling
    "v.post_ln": ignored,  # after the last layer
    "mm.{i}": numbered({0: f"{_PROJECTOR}.linear_1", 2: f"{_PROJECTOR}.linear_2"}),
    "v.image_newline": whole("image_newline"),
    "model.image_newline": whole("image_newline"),
}


def _configure(tower: Tower, text: TextModel) -> Json:
    if tower.file.key("clip.vision.feature_layer", None) is not None:
        raise StoreError("the projector (mmproj) uses several layers of its tower, which cannot be converted")
    side, patch = tower.number("image_size"), tower.number("patch_size")
    config: Json = {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "image_token_index": text.id_of(_IMAGE),
        "image_seq_length": (side // patch) ** 2,
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": "mm.0.bias" in tower.file.tensors,
        "vision_feature_layer": -1,  # the file ends with the layer that is used
        "vision_feature_select_strategy": "default",
        "vision_config": {
            "model_type": "clip_vision_model",
            **tower.sizes(),
            "projection_dim": tower.number("projection_dim", 768),
            "hidden_act": "gelu" if tower.file.key("clip.use_gelu", False) else "quick_gelu",
            "layer_norm_eps": tower.real("attention.layer_norm_epsilon", 1e-5),
        },
    }
    if _has_tiles(tower):
        config |= {
            "architectures": ["LlavaNextForConditionalGeneration"],
            "model_type": "llava_next",
            "image_grid_pinpoints": _pinpoints(tower, side),
            "use_image_newline_parameter": True,
        }
    return config


def _has_tiles(tower: Tower) -> bool:
    """Return whether large images are divided into tiles: LLaVA 1.6, which has a vector for the end of a row."""
    return bool({"model.image_newline", "v.image_newline"} & tower.file.tensors.keys())


def _pinpoints(tower: Tower, side: int) -> list[list[int]]:
    """Return the sizes that an image may be scaled to before it is divided."""
    stated: Any = tower.file.key("clip.vision.image_grid_pinpoints", None)
    if stated is None:
        return [[side, 2 * side], [2 * side, side], [2 * side, 2 * side], [3 * side, side], [side, 3 * side]]
    if not isinstance(stated, list) or len(stated) % 2 or len(stated) > 2 * _MOST_PINPOINTS:
        raise StoreError("the key clip.vision.image_grid_pinpoints of the projector (mmproj) is not a list of pairs")
    return [[int(stated[at]), int(stated[at + 1])] for at in range(0, len(stated), 2)]


def _files(tower: Tower, config: Json) -> Mapping[str, Json]:
    side, patch = config["vision_config"]["image_size"], config["vision_config"]["patch_size"]
    has_tiles = _has_tiles(tower)
    processor = "LlavaNextProcessor" if has_tiles else "LlavaProcessor"
    tiles = {"do_pad": True, "image_grid_pinpoints": config["image_grid_pinpoints"]} if has_tiles else {}
    return {
        "preprocessor_config.json": preprocessor(
            tower,
            CLIP_MEAN,
            CLIP_STD,
            image_processor_type="LlavaNextImageProcessor" if has_tiles else "CLIPImageProcessor",
            processor_class=processor,
            do_convert_rgb=True,
            do_center_crop=True,
            resample=BICUBIC,
            size={"shortest_edge": side},
            crop_size={"height": side, "width": side},
            **tiles,
        ),
        "processor_config.json": {
            "processor_class": processor,
            "image_token": _IMAGE,
            "patch_size": patch,
            "num_additional_image_tokens": 1,  # CLIP's class
            "vision_feature_select_strategy": "default",
        },
    }


TABLE = {"mlp": VisionModel(_configure, _files, _TENSORS, _IMAGE, tokens={"image_token": _IMAGE})}
