"""Qwen 2.5-VL, whose tower attends to windows in most of its layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from vllama.errors import StoreError
from vllama.store.gguf.architectures.table import Found, Rule, ignored
from vllama.store.gguf.placing import PlacedTensor, place
from vllama.store.gguf.reading import GgufTensor
from vllama.store.gguf.vision.table import (
    BICUBIC,
    CLIP_MEAN,
    CLIP_STD,
    Json,
    TextModel,
    VisionModel,
    beside,
    feed_forward,
    numbered,
    preprocessor,
)
from vllama.store.gguf.vision.tower import Tower

_IMAGE, _VIDEO = "<|image_pad|>", "<|video_pad|>"
_FRAMES = 2
"""Frames that a patch spans; an image is two equal ones."""

_LEAST_PIXELS, _MOST_PIXELS = 56 * 56, 28 * 28 * 16384
_SECTIONS = [16, 24, 24]
"""How many frequencies turn with time, height and width in heads of 128 values."""

_WINDOW, _FULL_LAYERS_EVERY = 112, 8
_LAYER = "visual.blocks.{i}"
_PATCHES = ("v.patch_embd.weight", "v.patch_embd.weight.1")


def _qkv(found: Found) -> Iterable[PlacedTensor]:
    parts = (found.tensor, beside(found, "attn_k"), beside(found, "attn_v"))
    return [place(found.named(f"{_LAYER}.attn.qkv"), *parts)]


def _patches(found: Found) -> Iterable[PlacedTensor]:
    """Place the convolution, which the converters divide by frames. Raises StoreError if a part is missing."""
    names = _PATCHES if found.tensor.name == _PATCHES[0] else ("v.patch_embd_0.weight", "v.patch_embd_1.weight")
    if any(name not in found.file.tensors for name in names):
        raise StoreError(f"the GGUF file lacks {names[1]}")
    frames = [_by_channel(found.file.tensors[name]) for name in names]
    outputs, channels, height, width = found.tensor.shape
    shape = (outputs, channels, len(frames), height, width)
    return [place("visual.patch_embed.proj.weight", *frames, shape=shape, alternates=True)]


def _by_channel(tensor: GgufTensor) -> GgufTensor:
    """Return the tensor with a row for each output and channel. Raises StoreError if it is not four-dimensional."""
    if len(tensor.shape) != 4 or tensor.is_quantized:
        raise StoreError(f"{tensor.name} has shape {tensor.shape} and type {tensor.type.name}, which is no convolution")
    outputs, channels, height, width = tensor.shape
    rows, size = outputs * channels, height * width
    return replace(tensor, shape=(rows, size), blocks=tensor.blocks.reshape(rows, size))


_TENSORS: dict[str, Rule] = {
    "v.patch_embd": _patches,
    "v.patch_embd.weight.{i}": ignored,  # placed with the first
    "v.patch_embd_0": _patches,
    "v.patch_embd_1": ignored,
    "v.post_ln": "visual.merger.ln_q",
    "v.merger.ln_q": "visual.merger.ln_q",  # Ollama's converter
    "v.blk.{i}.ln1": f"{_LAYER}.norm1",
    "v.blk.{i}.ln2": f"{_LAYER}.norm2",
    "v.blk.{i}.attn_qkv": f"{_LAYER}.attn.qkv",
    "v.blk.{i}.attn_q": _qkv,
    "v.blk.{i}.attn_k": ignored,
    "v.blk.{i}.attn_v": ignored,
    "v.blk.{i}.attn_out": f"{_LAYER}.attn.proj",
    "v.blk.{i}.ffn_gate": f"{_LAYER}.mlp.gate_proj",
    **feed_forward(f"{_LAYER}.mlp.up_proj", f"{_LAYER}.mlp.down_proj"),
    "mm.{i}": numbered({0: "visual.merger.mlp.0", 2: "visual.merger.mlp.2"}),
    "v.merger.mlp.{i}": numbered({0: "visual.merger.mlp.0", 2: "visual.merger.mlp.2"}),
}


def _configure(tower: Tower, text: TextModel) -> Json:
    rope = {**text.config["rope_parameters"], "mrope_section": _sections(text)}
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "image_token_id": text.id_of(_IMAGE),
        "video_token_id": text.id_of(_VIDEO),
        "vision_start_token_id": text.id_of("<|vision_start|>"),
        "vision_end_token_id": text.id_of("<|vision_end|>"),
        "text_config": {**text.config, "model_type": "qwen2_5_vl_text", "rope_parameters": rope},
        "vision_config": {
            "model_type": "qwen2_5_vl",
            "depth": tower.layers,
            "hidden_size": tower.number("embedding_length"),
            "intermediate_size": _width(tower),
            "num_heads": tower.number("attention.head_count"),
            "in_channels": 3,
            "in_chans": 3,
            "patch_size": tower.number("patch_size"),
            "spatial_patch_size": tower.number("patch_size"),
            "spatial_merge_size": tower.number("spatial_merge_size", 2),
            "temporal_patch_size": _FRAMES,
            "tokens_per_second": 2,
            "window_size": tower.number("window_size", _WINDOW),
            "fullatt_block_indexes": _full_layers(tower),
            "hidden_act": "silu",
            "out_hidden_size": text.config["hidden_size"],
        },
    }


def _sections(text: TextModel) -> list[int]:
    """Return how many frequencies turn with time, height and width; without a key, in the shares of the 7B."""
    for key in ("{arch}.rope.dimension_sections", "{arch}.rope.mrope_section"):
        if isinstance(stated := text.file.key(key, None), list):
            return [int(count) for count in stated[:3]]
    half = int(text.config["head_dim"]) // 2
    time = half * _SECTIONS[0] // sum(_SECTIONS)
    height = (half - time) // 2
    return [time, height, half - time - height]


def _width(tower: Tower) -> int:
    """Return the size of the feed-forward part; Ollama's files, and old ones of llama.cpp, do not say it."""
    return int(tower.number("feed_forward_length", 0)) or tower.file.tensors["v.blk.0.ffn_gate.weight"].shape[0]


def _full_layers(tower: Tower) -> list[int]:
    """Return the layers that attend to the whole image: a list in Ollama's files, an interval in llama.cpp's."""
    stated = tower.file.key("{arch}.vision.fullatt_block_indexes", None)
    if isinstance(stated, list):
        return [int(layer) for layer in stated]
    interval = max(tower.number("n_wa_pattern", _FULL_LAYERS_EVERY), 1)
    return list(range(interval - 1, tower.layers, interval))


def _files(tower: Tower, config: Json) -> Mapping[str, Json]:
    vision = config["vision_config"]
    return {
        "preprocessor_config.json": preprocessor(
            tower,
            CLIP_MEAN,
            CLIP_STD,
            image_processor_type="Qwen2VLImageProcessor",
            processor_class="Qwen2_5_VLProcessor",
            do_convert_rgb=True,
            resample=BICUBIC,
            min_pixels=_LEAST_PIXELS,
            max_pixels=_MOST_PIXELS,
            patch_size=vision["patch_size"],
            temporal_patch_size=_FRAMES,
            merge_size=vision["spatial_merge_size"],
        )
    }


TABLE = {"qwen2.5vl_merger": VisionModel(_configure, _files, _TENSORS, _IMAGE, rename=lambda name: name)}
