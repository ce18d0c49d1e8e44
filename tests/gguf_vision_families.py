"""Tiny random models of transformers that see, as GGUF files, written as llama.cpp's and Ollama's converters do."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gguf_families import _SMALL, Arrays, Family, _permuted, _plus_one, write_gguf

_SUFFIXES = (".weight", ".bias")
_PATCH, _SIDE = 14, 56
_CONTROL, _NORMAL = 3, 1
_MERGED = "Ġt"
_TOWER = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": _SIDE,
    "patch_size": _PATCH,
}
TEMPLATE = """\
{%- for message in messages -%}
{{- message['role'] + ': ' -}}
{%- if message['content'] is string -%}{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}{{- 'IMAGE' -}}{%- else -%}{{- part['text'] -}}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '; ' -}}
{%- endfor -%}
"""


@dataclass(frozen=True)
class VisionFamily:
    """A model that sees: its text model's family, its class in transformers, and what its converters do.

    `special` are the tokens of images in the file's vocabulary, `added` is one that it lacks. `change` returns the
    names and values of a tensor of the tower in llama.cpp's file; None leaves the name to the gguf library. `inside`
    does so for Ollama's file with all in one, if Ollama makes one, whose architecture may be named otherwise
    (`ollama`). `image_inputs` are the numbers that a processor makes of an image, by name, and `image_length` is the
    number of its tokens.
    """

    text: Family
    model: str
    config: str
    kind: str
    settings: Callable[[int], Mapping[str, Any]]
    keys: Callable[[Any], Mapping[str, Any]]
    change: Callable[[str, Any, Any], Arrays | None]
    image_length: int
    image_shape: tuple[int, ...] = (1, 3, _SIDE, _SIDE)
    image_inputs: Mapping[str, Any] = field(default_factory=dict)
    special: tuple[str, ...] = ()
    added: str = ""
    image: str = ""
    inside: Callable[[str, Any, Any], Arrays] | None = None
    inside_keys: Callable[[Any], Mapping[str, Any]] = lambda _: {}
    ollama: str = ""
    text_settings: Mapping[str, Any] = field(default_factory=dict)

    def build(self, destination: Path) -> Any:
        """Save a random model with 32-bit floats and return its configuration."""
        import torch
        import transformers

        rows = len(self.tokens) + (self.added != "")
        text = {**_SMALL, **self.text.settings, "vocab_size": -(-rows // 64) * 64 if self.added else rows}
        settings = {**self.settings(len(self.tokens)), "text_config": {**text, **self.text_settings}}
        config = getattr(transformers, self.config)(**settings)
        model = getattr(transformers, self.model)(config).float().eval()
        values = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                is_norm = re.search(r"(norm\d?|ln_\w+|layrnorm|layernorm)\.weight$", name) is not None
                gemma = "gemma" in self.text.architecture and "language_model" in name
                parameter.copy_(torch.randn(parameter.shape, generator=values) * 0.08 + (is_norm and not gemma))
        model.save_pretrained(destination)
        return model.config

    @property
    def tokens(self) -> tuple[str, ...]:
        """The vocabulary of the file: special tokens, and bytes as characters."""
        from tokenizers.pre_tokenizers import ByteLevel

        return ("<pad>", "<s>", "</s>", *self.special, *sorted(ByteLevel.alphabet()), _MERGED)

    def write(self, snapshot: Path, config: Any, directory: Path, kind: str = "F32") -> tuple[Path, Path]:
        """Write the saved model as llama.cpp's converters do; return the paths of the model and the projector.

        Matrices of the text model have the type `kind`.
        """
        text, tower = self._split(snapshot)
        model, projector = directory / "model.gguf", directory / "mmproj.gguf"
        write_gguf(model, self.text.architecture, self._text_keys(config), self._text(text, config), kind)
        found: dict[str, Any] = {}
        for name, values in tower.items():
            changed = self.change(name, values, config)
            found |= {name: values} if changed is None else changed
        names = self._known_names(config)
        named = {names(name): values for name, values in found.items()}
        vision = config.vision_config
        keys = {
            "clip.has_vision_encoder": True,
            "clip.projector_type": self.kind,
            "clip.vision.embedding_length": vision.hidden_size,
            "clip.vision.feed_forward_length": vision.intermediate_size,
            "clip.vision.patch_size": vision.patch_size,
            "clip.vision.image_mean": [0.5, 0.5, 0.5],
            "clip.vision.image_std": [0.5, 0.5, 0.5],
            **self.keys(config),
        }
        write_gguf(projector, "clip", keys, named)
        return model, projector

    def write_inside(self, snapshot: Path, config: Any, path: Path) -> Path:
        """Write the saved model as Ollama's converter does, and return the path."""
        assert self.inside is not None
        text, tower = self._split(snapshot)
        tensors = dict(self._text(text, config))
        for name, values in tower.items():
            tensors |= self.inside(name, values, config)
        own, theirs = self.text.architecture, self.ollama or self.text.architecture
        keys = {
            key.replace(f"{own}.", f"{theirs}."): value
            for key, value in {**self._text_keys(config), **self.inside_keys(config)}.items()
        }
        write_gguf(path, theirs, keys, tensors)
        return path

    def inputs(self, config: Any) -> dict[str, Any]:
        """Return what the model takes for a prompt with an image, whose pixels are random."""
        import torch

        image_id = getattr(config, "image_token_id", None) or config.image_token_index
        ids = torch.tensor([[1, 40, 41, *[image_id] * self.image_length, 42, 43, 44]])
        pixels = torch.randn(self.image_shape, generator=torch.Generator().manual_seed(2))
        more = {name: torch.tensor(value) for name, value in self.image_inputs.items()}
        if self.kind == "gemma3":
            more["token_type_ids"] = (ids == image_id).long()
        elif self.kind == "qwen2.5vl_merger":
            more["mm_token_type_ids"] = (ids == image_id).int()
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels, **more}

    def _split(self, snapshot: Path) -> tuple[Arrays, Arrays]:
        """Return the tensors of the text model, named as those of a text model alone, and the others."""
        from safetensors.numpy import load_file

        saved = load_file(snapshot / "model.safetensors")
        is_text = re.compile(r"(model\.)?language_model\.|lm_head|model\.(layers|embed_tokens|norm)\b")
        text = {
            re.sub(r"^(model\.)?language_model\.(?!model|lm_head)", "model.", name).removeprefix(
                "language_model."
            ): values
            for name, values in saved.items()
            if is_text.match(name)
        }
        tower = {name: values for name, values in saved.items() if not is_text.match(name)}
        # transformers 5 saves new towers without a part of the names that repositories on the Hub have.
        new = re.compile(r"^vision_tower\.(?=embeddings|encoder|post_layernorm|pre_layrnorm)")
        return text, {new.sub("vision_tower.vision_model.", name): values for name, values in tower.items()}

    def _text(self, text: Arrays, config: Any) -> Arrays:
        rows = len(self.tokens)
        tensors = self.text.tensors_of(text, config.text_config)
        by_token = ("token_embd.weight", "output.weight")
        return {name: values[:rows].copy() if name in by_token else values for name, values in tensors.items()}

    def _text_keys(self, config: Any) -> Mapping[str, Any]:
        tokens = self.tokens
        special = 3 + len(self.special)
        return {
            **self.text.keys_of(config.text_config),
            "tokenizer.ggml.pre": "gpt-2",
            "tokenizer.ggml.tokens": list(tokens),
            "tokenizer.ggml.token_type": [_CONTROL] * special + [_NORMAL] * (len(tokens) - special),
            "tokenizer.ggml.merges": [" ".join(_MERGED)],
            "tokenizer.chat_template": TEMPLATE.replace("IMAGE", self.image),
        }

    def _known_names(self, config: Any) -> Callable[[str], str]:
        import gguf

        layers = getattr(config.vision_config, "num_hidden_layers", None) or config.vision_config.depth
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, layers)
        return lambda name: (
            name if name.startswith(("v.", "mm.", "model.image")) else str(names.get_name(name, _SUFFIXES))
        )


def _clip(config: Any) -> dict[str, Any]:
    vision = config.vision_config
    return {
        "clip.vision.image_size": vision.image_size,
        "clip.vision.block_count": vision.num_hidden_layers,
        "clip.vision.attention.head_count": vision.num_attention_heads,
        "clip.vision.attention.layer_norm_epsilon": getattr(vision, "layer_norm_eps", 1e-5),
    }


def _gemma3(name: str, values: Any, _: Any) -> Arrays | None:
    if name.endswith("mm_soft_emb_norm.weight"):
        return {name: values + 1}
    return {name.replace("_weight", ".weight"): values} if name.endswith("projection_weight") else None


_OLLAMA_GEMMA3 = (
    ("vision_tower.vision_model.embeddings", "v"),
    ("vision_tower.vision_model", "v"),
    ("encoder.layers", "blk"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.out_proj", "attn_output"),
    ("input_projection_weight", "input_projection.weight"),
    ("multi_modal_projector", "mm"),
)
_OLLAMA_MISTRAL3 = (
    ("vision_tower", "v"),
    ("transformer.layers", "blk"),
    ("ln_pre", "encoder_norm"),
    ("attention.q_proj", "attn_q"),
    ("attention.k_proj", "attn_k"),
    ("attention.v_proj", "attn_v"),
    ("attention.o_proj", "attn_output"),
    ("attention_norm", "attn_norm"),
    ("feed_forward.gate_proj", "ffn_gate"),
    ("feed_forward.down_proj", "ffn_down"),
    ("feed_forward.up_proj", "ffn_up"),
    ("multi_modal_projector", "mm"),
)


def _spelled(pairs: tuple[tuple[str, str], ...]) -> Callable[[str, Any, Any], Arrays]:
    def rename(name: str, values: Any, config: Any) -> Arrays:
        del config
        for theirs, ollama in pairs:
            name = name.replace(theirs, ollama)
        return {name: values + 1 if name == "mm.mm_soft_emb_norm.weight" else values}

    return rename


def _llava(name: str, values: Any, config: Any) -> Arrays:
    """Name a tensor as llama.cpp's old script does, which leaves out the last layer and swaps names."""
    if name == "image_newline":
        return {"model.image_newline": values}
    if name.startswith("multi_modal_projector"):
        return {
            name.replace("multi_modal_projector.linear_1", "mm.0").replace(
                "multi_modal_projector.linear_2", "mm.2"
            ): values
        }
    last = f"encoder.layers.{config.vision_config.num_hidden_layers - 1}."
    if last in name or "post_layernorm" in name:
        return {}
    for theirs, ours in (
        ("vision_tower.vision_model", "v"),
        ("encoder.layers", "blk"),
        ("embeddings.", ""),
        ("_proj", ""),
        ("self_attn.", "attn_"),
        ("layer_norm", "ln"),
        ("mlp.fc1", "ffn_down"),
        ("mlp.fc2", "ffn_up"),
        ("embedding", "embd"),
        ("layrnorm", "ln"),
    ):
        name = name.replace(theirs, ours)
    return {name: values}


def _llava_keys(config: Any) -> dict[str, Any]:
    tiles = [side for size in getattr(config, "image_grid_pinpoints", ()) for side in size]
    return {
        **_clip(config),
        "clip.has_text_encoder": False,
        "clip.has_llava_projector": True,
        "clip.vision.block_count": config.vision_config.num_hidden_layers - 1,
        "clip.vision.projection_dim": config.vision_config.projection_dim,
        "clip.use_gelu": False,
        **(
            {"clip.vision.image_grid_pinpoints": tiles, "clip.vision.mm_patch_merge_type": "spatial_unpad"}
            if tiles
            else {}
        ),
    }


def _mistral3(name: str, values: Any, config: Any) -> Arrays | None:
    if found := re.search(r"linear_(\d)\.(weight|bias)$", name):
        return {f"mm.{found[1]}.{found[2]}": values}
    if not re.search(r"attention\.[qk]_proj", name):
        return None
    heads = config.vision_config.num_attention_heads
    return {name: values.reshape(heads, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)}


def _qwen(patches: tuple[str, str], merger: str) -> Callable[[str, Any, Any], Arrays | None]:
    """Return what divides the convolution by frames, and the layer of q, k and v."""

    def change(name: str, values: Any, _: Any) -> Arrays | None:
        if name == "visual.patch_embed.proj.weight":
            return {part: values[:, :, frame].copy() for frame, part in enumerate(patches)}
        if found := re.search(r"blocks\.(\d+)\.attn\.qkv\.(weight|bias)$", name):
            third = values.shape[0] // 3
            names = (f"v.blk.{found[1]}.attn_{letter}.{found[2]}" for letter in "qkv")
            return {part: values[at * third : (at + 1) * third].copy() for at, part in enumerate(names)}
        if found := re.search(r"merger\.mlp\.(\d)\.(weight|bias)$", name):
            return {merger.format(found[1], found[2]): values}
        return None

    return change


def _ollama_qwen(name: str, values: Any, config: Any) -> Arrays:
    split = _qwen(("v.patch_embd_0.weight", "v.patch_embd_1.weight"), "v.merger.mlp.{}.{}")(name, values, config)
    if split is not None:
        return split
    for theirs, ollama in (
        ("visual", "v"), ("blocks", "blk"), ("attn.proj", "attn_out"), ("norm1", "ln1"), ("norm2", "ln2"),
        ("mlp.gate_proj", "ffn_gate"), ("mlp.up_proj", "ffn_up"), ("mlp.down_proj", "ffn_down"),
    ):  # fmt: skip
        name = name.replace(theirs, ollama)
    return {name: values}


def _tower_keys(architecture: str, config: Any, *names: str) -> dict[str, Any]:
    """Return keys of Ollama's file for the tower: those of these names, which transformers has as well."""
    vision, prefix = config.vision_config, f"{architecture}.vision."
    return {
        prefix + "embedding_length": vision.hidden_size,
        prefix + "attention.head_count": getattr(vision, "num_attention_heads", None) or vision.num_heads,
        prefix + "block_count": getattr(vision, "num_hidden_layers", None) or vision.depth,
        **{prefix + name: getattr(vision, name) for name in names},
    }


def _text(architecture: str, model: str, **more: Any) -> Family:
    return Family(architecture, f"{model}ForCausalLM", f"{model}Config", **more)


def _llama_vision(kind: str, **more: Any) -> VisionFamily:
    next_tiles = kind == "LlavaNext"
    return VisionFamily(
        _text("llama", "Llama", change=_permuted, settings={"model_type": "llama", "head_dim": 32}),
        f"{kind}ForConditionalGeneration",
        f"{kind}Config",
        "mlp",
        settings=lambda tokens: {
            "vision_config": {
                **_TOWER,
                "num_hidden_layers": 3,
                "model_type": "clip_vision_model",
                "projection_dim": 32,
            },
            "image_token_index": tokens,
            "image_seq_length": (_SIDE // _PATCH) ** 2,
            **({"image_grid_pinpoints": [[_SIDE, 2 * _SIDE], [2 * _SIDE, _SIDE]]} if next_tiles else {}),
        },
        keys=_llava_keys,
        change=_llava,
        image_length=52 if next_tiles else 16,
        image_shape=(1, 3, 3, _SIDE, _SIDE) if next_tiles else (1, 3, _SIDE, _SIDE),
        image_inputs={"image_sizes": [[_SIDE, 2 * _SIDE]]} if next_tiles else {},
        added="<image>",
        image="<image>",
        **more,
    )


_GEMMA3_TOKENS = ("<start_of_image>", "<end_of_image>", "\n", "\n\n", "\n\n\n", "\n\n\n\n")
_QWEN_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")

FAMILIES: dict[str, VisionFamily] = {
    "gemma3": VisionFamily(
        _text("gemma3", "Gemma3", change=_plus_one),
        "Gemma3ForConditionalGeneration",
        "Gemma3Config",
        "gemma3",
        settings=lambda tokens: {
            "vision_config": {**_TOWER, "vision_use_head": False},
            "mm_tokens_per_image": 4,
            "boi_token_index": 3,
            "eoi_token_index": 4,
            "image_token_index": tokens,
        },
        text_settings={
            "head_dim": 32, "query_pre_attn_scalar": 32, "num_hidden_layers": 7, "sliding_window": 32,
        },
        keys=lambda config: {**_clip(config), "clip.vision.projector.scale_factor": 2, "clip.use_gelu": True},
        change=_gemma3,
        image_length=4,
        special=_GEMMA3_TOKENS,
        added="<image_soft_token>",
        image="<start_of_image>",
        inside=_spelled(_OLLAMA_GEMMA3),
        inside_keys=lambda config: {
            **_tower_keys("gemma3", config, "image_size", "patch_size"),
            "gemma3.vision.feed_forward_length": config.vision_config.intermediate_size,
            "gemma3.vision.attention.layer_norm_epsilon": config.vision_config.layer_norm_eps,
            "gemma3.mm.tokens_per_image": config.mm_tokens_per_image,
        },
    ),
    "qwen2.5vl": VisionFamily(
        _text("qwen2vl", "Qwen2"),
        "Qwen2_5_VLForConditionalGeneration",
        "Qwen2_5_VLConfig",
        "qwen2.5vl_merger",
        settings=lambda _: {
            "vision_config": {
                "depth": 4, "hidden_size": 64, "intermediate_size": 96, "num_heads": 2, "patch_size": _PATCH,
                "fullatt_block_indexes": [1, 3], "window_size": 56, "out_hidden_size": 128,
            },
            "vision_start_token_id": 3, "vision_end_token_id": 4, "image_token_id": 5, "video_token_id": 6,
        },
        text_settings={
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
        },
        keys=lambda config: {
            "clip.vision.image_size": 560,
            "clip.vision.block_count": config.vision_config.depth,
            "clip.vision.attention.head_count": config.vision_config.num_heads,
            "clip.vision.attention.layer_norm_epsilon": 1e-6,
            "clip.vision.window_size": config.vision_config.window_size,
            "clip.vision.n_wa_pattern": 2,
            "clip.use_silu": True,
        },
        change=_qwen(("v.patch_embd.weight", "v.patch_embd.weight.1"), "mm.{}.{}"),
        image_length=4,
        image_shape=(16, 3 * 2 * _PATCH * _PATCH),
        image_inputs={"image_grid_thw": [[1, 4, 4]]},
        special=_QWEN_TOKENS,
        image="<|vision_start|><|image_pad|><|vision_end|>",
        inside=_ollama_qwen,
        ollama="qwen25vl",
        inside_keys=lambda config: {
            **_tower_keys("qwen2vl", config, "patch_size", "spatial_merge_size", "window_size"),
            "qwen2vl.vision.fullatt_block_indexes": list(config.vision_config.fullatt_block_indexes),
        },
    ),
    "mistral3": VisionFamily(
        _text("mistral3", "Mistral", change=_permuted),
        "Mistral3ForConditionalGeneration",
        "Mistral3Config",
        "pixtral",
        settings=lambda _: {
            "vision_config": {**_TOWER, "model_type": "pixtral", "hidden_act": "silu"},
            "image_token_index": 3,
            "tie_word_embeddings": False,
        },
        text_settings={"model_type": "mistral", "head_dim": 32, "sliding_window": None},
        keys=lambda config: {
            **_clip(config), "clip.vision.spatial_merge_size": config.spatial_merge_size, "clip.use_silu": True,
        },
        change=_mistral3,
        image_length=4,
        image_inputs={"image_sizes": [[_SIDE, _SIDE]]},
        special=("[IMG]", "[IMG_BREAK]", "[IMG_END]"),
        image="[IMG]",
        inside=_spelled(_OLLAMA_MISTRAL3),
        inside_keys=lambda config: {
            **_tower_keys("mistral3", config, "image_size", "patch_size"),
            "mistral3.vision.feed_forward_length": config.vision_config.intermediate_size,
            "mistral3.spatial_merge_size": config.spatial_merge_size,
        },
    ),
    "llava": _llama_vision("Llava"),
    "llava-next": _llama_vision("LlavaNext"),
}  # fmt: skip
