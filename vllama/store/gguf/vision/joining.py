"""A text model and its vision tower as one snapshot."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from vllama.errors import StoreError
from vllama.store.gguf.architectures.names import VISION_TEXTS
from vllama.store.gguf.architectures.table import place_all
from vllama.store.gguf.placing import PlacedTensor
from vllama.store.gguf.reading import GgufFile
from vllama.store.gguf.vision.entries import TABLE
from vllama.store.gguf.vision.table import Json, TextModel, VisionModel
from vllama.store.gguf.vision.tower import Tower
from vllama.store.gguf.vocabulary import Kind

_BY_TOKEN = ("token_embd.weight", "output.weight")
"""Tensors with a row for each token."""

_ROWS = 64
"""The number of rows of an embedding is a multiple of this, as in repositories on the Hub."""

_SHARED = ("bos_token_id", "eos_token_id", "pad_token_id", "dtype", "tie_word_embeddings")
"""Fields of config.json that both a multimodal model and its text model have."""


@dataclass(frozen=True)
class Joined:
    """A model that sees: config.json, its tensors, other settings files by name, and what its tokenizer gets.

    `keys` are those of the text model's file with the token for images, and `tokens` names for tokenizer_config.json.
    """

    config: Json
    tensors: list[PlacedTensor]
    files: Mapping[str, Json]
    keys: Mapping[str, Any]
    tokens: Mapping[str, str]


def join(file: GgufFile, tower: Tower, config: Json, tensors: Iterable[PlacedTensor]) -> Joined:
    """Join the text model of a file, which became `config` and `tensors`, with its tower. Raises StoreError."""
    model = _model(tower, file.architecture)
    keys = _with_token(file.keys, model.image_token)
    ids = {token: number for number, token in enumerate(keys["tokenizer.ggml.tokens"])}
    rows = int(config["vocab_size"])
    if ids[model.image_token] >= rows:  # a row that no text uses: the image takes its place
        rows = -(-(ids[model.image_token] + 1) // _ROWS) * _ROWS
    text = {**config, "vocab_size": rows}
    shared = {field: text[field] for field in _SHARED if field in text}
    joined = {**shared, "text_config": text, **model.configure(tower, TextModel(file, text, ids))}
    placed = [*_renamed(tensors, model, rows), *place_all(tower.file, model.tensors, "v.blk.", tower.layers)]
    return Joined(joined, placed, model.files(tower, joined), keys, model.tokens)


def _model(tower: Tower, architecture: str) -> VisionModel:
    texts = VISION_TEXTS.get(tower.kind)
    if texts is None:
        raise StoreError(f"vision towers of kind '{tower.kind}' cannot be converted")
    if architecture not in texts:
        raise StoreError(f"a vision tower of kind '{tower.kind}' does not fit a model of architecture '{architecture}'")
    return TABLE[tower.kind]


def _with_token(keys: Mapping[str, Any], token: str) -> Mapping[str, Any]:
    """Return the keys with this token in the vocabulary, as one that is found in text before all else."""
    tokens = keys.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list):
        raise StoreError("the GGUF file has no tokens: the key tokenizer.ggml.tokens is missing or empty")
    at = tokens.index(token) if token in tokens else len(tokens)
    changed = {**keys, "tokenizer.ggml.tokens": tokens if at < len(tokens) else [*tokens, token]}
    for name, value in (("token_type", Kind.CONTROL.value), ("scores", 0.0)):
        key = f"tokenizer.ggml.{name}"
        if isinstance(stated := keys.get(key), list):
            changed[key] = [*stated[:at], value, *stated[at + 1 :]]
    return changed


def _renamed(tensors: Iterable[PlacedTensor], model: VisionModel, rows: int) -> Iterator[PlacedTensor]:
    for placed in tensors:
        named = replace(placed, name=model.rename(placed.name))
        is_short = placed.source.name in _BY_TOKEN and placed.shape[0] < rows
        yield named.padded(rows) if is_short else named
