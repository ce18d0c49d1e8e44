"""The form of an entry for models that see, and the rules that several towers share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vllama.errors import StoreError
from vllama.store.gguf.architectures.table import Found, Rule
from vllama.store.gguf.placing import PlacedTensor, place
from vllama.store.gguf.reading import GgufFile, GgufTensor
from vllama.store.gguf.vision.tower import Tower

Json = dict[str, Any]
Colours = tuple[float, float, float]

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""The colours of CLIP's training images, which most towers expect."""

BILINEAR, BICUBIC = 2, 3
"""PIL's numbers for ways to scale an image."""


@dataclass(frozen=True, slots=True)
class TextModel:
    """The text model of a tower: its file, what config.json would have for it alone, and its tokens' ids."""

    file: GgufFile
    config: Json
    ids: Mapping[str, int]

    def id_of(self, token: str) -> int:
        """Return the id of a token. Raises StoreError if the vocabulary lacks it."""
        if token not in self.ids:
            raise StoreError(f"the vocabulary of the GGUF file lacks {token}, which stands for images")
        return self.ids[token]


@dataclass(frozen=True, slots=True)
class VisionModel:
    """How a text model and a tower of one kind become a snapshot.

    `configure` returns config.json without what all kinds have; it may change the text model's part, `text_config`.
    `files` returns the other settings files by name, from the tower and config.json. `tensors` maps names in the tower
    to rules. `image_token` stands for each vector of an image; it is added to vocabularies that lack it. `tokens` are
    tokens by their names in tokenizer_config.json. `rename` returns the name of a tensor of the text model.
    """

    configure: Callable[[Tower, TextModel], Json]
    files: Callable[[Tower, Json], Mapping[str, Json]]
    tensors: Mapping[str, Rule]
    image_token: str
    tokens: Mapping[str, str] = field(default_factory=dict)
    rename: Callable[[str], str] = "language_model.{}".format


def spelled(rules: Mapping[str, Rule], ollama: Mapping[str, str]) -> dict[str, Rule]:
    """Return the rules, also under the names of Ollama's converter, from llama.cpp's."""
    return {**rules, **{other: rules[name] for name, other in ollama.items()}}


def preprocessor(tower: Tower, mean: Colours, deviation: Colours, **own: Any) -> Json:
    """Return preprocessor_config.json: images are scaled, and their colours are normalized, by default to these."""
    return {
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "rescale_factor": 1 / 255,
        "image_mean": tower.colours("image_mean", mean),
        "image_std": tower.colours("image_std", deviation),
        **own,
    }


def clip_encoder(name: str) -> dict[str, Rule]:
    """Return the rules for the layers of a tower that is built as CLIP's in transformers."""
    layer = f"{name}.encoder.layers.{{i}}"
    return {
        "v.patch_embd": f"{name}.embeddings.patch_embedding",
        "v.position_embd": f"{name}.embeddings.position_embedding",
        "v.blk.{i}.ln1": f"{layer}.layer_norm1",
        "v.blk.{i}.ln2": f"{layer}.layer_norm2",
        "v.blk.{i}.attn_q": f"{layer}.self_attn.q_proj",
        "v.blk.{i}.attn_k": f"{layer}.self_attn.k_proj",
        "v.blk.{i}.attn_v": f"{layer}.self_attn.v_proj",
        "v.blk.{i}.attn_out": f"{layer}.self_attn.out_proj",
        **feed_forward(f"{layer}.mlp.fc1", f"{layer}.mlp.fc2"),
    }


def feed_forward(first: str, second: str) -> dict[str, Rule]:
    """Return the rules for the two layers of a block's feed-forward part.

    Old converters swapped their names (llama.cpp's tools/mtmd/clip.cpp, `is_ffn_swapped`): the layer that takes the
    tower's vectors is the first.
    """

    def rule(found: Found) -> Iterable[PlacedTensor]:
        down = found.file.tensors.get(f"v.blk.{found.block}.ffn_down.weight")
        hidden = int(found.file.key("{arch}.vision.embedding_length"))
        is_swapped = down is not None and down.shape[-1] == hidden
        is_up = ".ffn_up." in found.tensor.name
        return [place(found.named(first if is_up != is_swapped else second), found.tensor)]

    return {"v.blk.{i}.ffn_up": rule, "v.blk.{i}.ffn_down": rule}


def numbered(names: Mapping[int, str]) -> Rule:
    """Return the rule for layers that a number tells apart: "mm.0" and "mm.2"."""

    def rule(found: Found) -> Iterable[PlacedTensor]:
        name = names.get(found.block)
        if name is None:
            raise StoreError(f"the GGUF file has the tensor {found.tensor.name}, which this kind is not known to have")
        return [place(found.named(name), found.tensor)]

    return rule


def beside(found: Found, part: str) -> GgufTensor:
    """Return the tensor of the same block of the tower, and with the same suffix. Raises StoreError."""
    name = f"v.blk.{found.block}.{part}{found.suffix}"
    if name not in found.file.tensors:
        raise StoreError(f"the GGUF file has {found.tensor.name}, but lacks {name}")
    return found.file.tensors[name]
