"""Mistral Small 3.1 and its successors, with Pixtral as the tower."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from vllama.errors import StoreError
from vllama.store.gguf.architectures.table import Found, Rule, ignored
from vllama.store.gguf.placing import Piece, PlacedTensor, place, rotary_rows
from vllama.store.gguf.vision.table import (
    BICUBIC,
    CLIP_MEAN,
    CLIP_STD,
    Json,
    TextModel,
    VisionModel,
    numbered,
    preprocessor,
    spelled,
)
from vllama.store.gguf.vision.tower import Tower

_IMAGE, _BREAK, _END = "[IMG]", "[IMG_BREAK]", "[IMG_END]"
_MERGED = "mm.patch_merger"
_TOWER, _PROJECTOR = "vision_tower", "multi_modal_projector"
_LAYER = f"{_TOWER}.transformer.layers.{{i}}"


def _rotary(name: str) -> Rule:
    """Return the rule for q or k: llama.cpp's converter changes the order of their rows, Ollama's does not."""

    def rule(found: Found) -> Iterable[PlacedTensor]:
        tower = Tower(found.file, "pixtral")
        rows, heads = found.tensor.blocks.shape[0], tower.number("attention.head_count")
        if heads < 1 or rows % (2 * heads):
            raise StoreError(f"{found.tensor.name} has {rows} rows, which {heads} heads cannot share")
        order = rotary_rows(heads, rows) if tower.has_own_file else None
        return [place(found.named(name), Piece(found.tensor, order))]

    return rule


_TENSORS: dict[str, Rule] = {
    "v.patch_embd": f"{_TOWER}.patch_conv",
    "v.pre_ln": f"{_TOWER}.ln_pre",
    "v.blk.{i}.ln1": f"{_LAYER}.attention_norm",
    "v.blk.{i}.ln2": f"{_LAYER}.ffn_norm",
    "v.blk.{i}.attn_q": _rotary(f"{_LAYER}.attention.q_proj"),
    "v.blk.{i}.attn_k": _rotary(f"{_LAYER}.attention.k_proj"),
    "v.blk.{i}.attn_v": f"{_LAYER}.attention.v_proj",
    "v.blk.{i}.attn_out": f"{_LAYER}.attention.o_proj",
    "v.blk.{i}.ffn_gate": f"{_LAYER}.feed_forward.gate_proj",
    "v.blk.{i}.ffn_up": f"{_LAYER}.feed_forward.up_proj",
    "v.blk.{i}.ffn_down": f"{_LAYER}.feed_forward.down_proj",
    "v.token_embd.img_break": ignored,  # a row of the text model's embedding
    "mm.input_norm": f"{_PROJECTOR}.norm",
    _MERGED: f"{_PROJECTOR}.patch_merger.merging_layer",
    "mm.{i}": numbered({1: f"{_PROJECTOR}.linear_1", 2: f"{_PROJECTOR}.linear_2"}),
    "mm.linear_1": f"{_PROJECTOR}.linear_1",  # Ollama's converter
    "mm.linear_2": f"{_PROJECTOR}.linear_2",
}
_OLLAMA = {
    "v.patch_embd": "v.patch_conv",
    "v.pre_ln": "v.encoder_norm",
    "v.blk.{i}.ln1": "v.blk.{i}.attn_norm",
    "v.blk.{i}.ln2": "v.blk.{i}.ffn_norm",
    "v.blk.{i}.attn_out": "v.blk.{i}.attn_output",
    "mm.input_norm": "mm.norm",
    _MERGED: "mm.patch_merger.merging_layer",
}


def _configure(tower: Tower, text: TextModel) -> Json:
    names = {f"{name}.weight" for name in (_MERGED, _OLLAMA[_MERGED])}
    if not names & tower.file.tensors.keys():
        raise StoreError("the projector (mmproj) is Pixtral's without a patch merger, which cannot be converted")
    decoder = dict(text.config)
    if decoder["model_type"] == "llama":  # files from before architecture "mistral3"
        decoder |= {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": None}
    merged = tower.number("spatial_merge_size", int(tower.file.key("{arch}.spatial_merge_size", 2)))
    biases = ("mm.1.bias", "mm.linear_1.bias")
    return {
        "architectures": ["Mistral3ForConditionalGeneration"],
        "model_type": "mistral3",
        "image_token_index": text.id_of(_IMAGE),
        "multimodal_projector_bias": any(name in tower.file.tensors for name in biases),
        "projector_hidden_act": "gelu",
        "spatial_merge_size": merged,
        "vision_feature_layer": -1,
        "text_config": decoder,
        "vision_config": {
            "model_type": "pixtral",
            **tower.sizes(),
            "head_dim": tower.number("embedding_length") // max(tower.number("attention.head_count"), 1),
            "hidden_act": "gelu" if tower.file.key("clip.use_gelu", False) else "silu",
            "rope_parameters": {
                "rope_theta": float(tower.file.key("clip.rope.freq_base", tower.real("rope.freq_base", 10_000.0))),
                "rope_type": "default",
            },
        },
    }


def _files(tower: Tower, config: Json) -> Mapping[str, Json]:
    patch, merged = config["vision_config"]["patch_size"], config["spatial_merge_size"]
    return {
        "preprocessor_config.json": preprocessor(
            tower,
            CLIP_MEAN,
            CLIP_STD,
            image_processor_type="PixtralImageProcessor",
            processor_class="PixtralProcessor",
            do_convert_rgb=True,
            resample=BICUBIC,
            size={"longest_edge": config["vision_config"]["image_size"]},
            patch_size={"height": patch, "width": patch},
        ),
        "processor_config.json": {
            "processor_class": "PixtralProcessor",
            "image_token": _IMAGE,
            "image_break_token": _BREAK,
            "image_end_token": _END,
            "patch_size": patch,
            "spatial_merge_size": merged,
        },
    }


TABLE = {"pixtral": VisionModel(_configure, _files, spelled(_TENSORS, _OLLAMA), _IMAGE)}
