"""LoRA adapters in PEFT's layout: contents, and whether vLLM can serve them on a base model.

Reads adapter_config.json and the header of adapter_model.safetensors. Features that vLLM would ignore, and so serve
wrongly, are refused (`vllm/lora/peft_helper.py`, `vllm/lora/lora_model.py`).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllama.errors import ManifestCorrupt, RequestError
from vllama.store.description import ModelDescription
from vllama.store.foreign_files import read_json
from vllama.store.manifest import HIGHEST_RANK
from vllama.store.weights import Tensor, read_tensors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

_CHANGED_MEANING = {
    "use_dora": "DoRA (use_dora)",
    "lora_bias": "a bias (lora_bias)",
    "modules_to_save": "whole layers beside it (modules_to_save)",
    "rank_pattern": "ranks of single layers (rank_pattern)",
    "alpha_pattern": "scales of single layers (alpha_pattern)",
    "alora_invocation_tokens": "activation by tokens (aLoRA)",
    "layer_replication": "replicated layers (layer_replication)",
    "trainable_token_indices": "trained tokens (trainable_token_indices)",
    "use_bdlora": "block-diagonal matrices (BD-LoRA)",
    "use_qalora": "QALoRA (use_qalora)",
    "arrow_config": "a choice between adapters (Arrow)",
}
"""Config keys that change the adapter's meaning beyond its two matrices per layer."""

_PLAIN_STARTS = frozenset({"gaussian", "eva", "orthogonal", "mica", "lora_ga"})
"""Values of init_lora_weights that leave the base weights unchanged; others (PiSSA, OLoRA, …) change them."""

_MATRIX = re.compile(r"(?:base_model\.model\.)?(.+)\.(?:lora_([AB])\.weight|lora_embedding_([AB]))")
_OF_THE_BASE = (".embed_tokens.base_layer.weight", ".lm_head.base_layer.weight")
"""Additional tensors that PEFT may save and vLLM skips."""

_MERGE = "merge the adapter into the base model"

_LAYER = re.compile(r"[^.]+\.\d+\..+")

Extents = tuple[int | None, int | None]
"""Outputs and inputs of a layer; None if the format of its weights does not say."""


@dataclass(frozen=True, slots=True)
class Layer:
    """An adapter's change to one layer of the base model: rank, outputs and inputs."""

    name: str
    rank: int
    extents: tuple[int, int]
    embeds: bool

    @property
    def module(self) -> str:
        """The last part of the layer's name: "q_proj"."""
        return self.name.rpartition(".")[2]


def check_fit(directory: Path, base: ModelDescription) -> int:
    """Return the rank of the adapter in this directory. Raises RequestError if it cannot be served on the base."""
    config = _read_config(directory / CONFIG)
    rank = _check_config(config)
    layers = read_layers(directory)
    for layer in layers:
        if layer.rank != rank and not _is_expert(layer.name):
            raise RequestError(f"the adapter is damaged: {layer.name} has rank {layer.rank}, but {CONFIG} has {rank}")
    _check_extents(layers, base, str(config.get("base_model_name_or_path") or ""))
    return rank


def read_layers(directory: Path) -> list[Layer]:
    """Return the layers that the adapter changes. Raises RequestError if its weights are not a LoRA."""
    try:
        tensors = read_tensors([directory / WEIGHTS])
    except ManifestCorrupt as error:
        raise RequestError(str(error).replace(f"{directory}/", "")) from None
    matrices: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for tensor in tensors:
        if tensor.name.endswith(_OF_THE_BASE):
            continue
        match = _MATRIX.fullmatch(tensor.name)
        if not match:
            raise RequestError(f"vLLM cannot serve the adapter: its tensor {tensor.name} is not a LoRA matrix")
        matrices[match[1]][match[2] or f"embedding_{match[3]}"] = tensor
    if not matrices:
        raise RequestError(f"the adapter's {WEIGHTS} contains no LoRA matrices")
    return [_layer(name, pair) for name, pair in matrices.items()]


def _layer(name: str, pair: Mapping[str, Tensor]) -> Layer:
    """Return the layer of two matrices: A is rank × inputs, B is outputs × rank."""
    embeds = any(side.startswith("embedding") for side in pair)
    a, b = (pair.get(f"embedding_{side}" if embeds else side) for side in "AB")
    if a is None or b is None or len(pair) != 2:
        raise RequestError(f"the adapter is damaged: one of the two matrices of {name} is missing")
    if len(a.shape) != 2 or len(b.shape) != 2:
        raise RequestError(f"vLLM cannot serve the adapter: its tensors for {name} are not matrices")
    if a.shape[0] != b.shape[1]:
        raise RequestError(f"the adapter is damaged: the matrices of {name} have ranks {a.shape[0]} and {b.shape[1]}")
    return Layer(name, a.shape[0], (b.shape[0], a.shape[1]), embeds)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = read_json(path)
    except (OSError, ValueError) as error:
        raise RequestError(f"cannot read the adapter's {CONFIG}: {error}") from None
    if not isinstance(config, dict):
        raise RequestError(f"the adapter's {CONFIG} is not a JSON object")
    return config


def _check_config(config: Mapping[str, Any]) -> int:
    """Return the stated rank. Raises RequestError if the adapter is more than a LoRA."""
    kind = config.get("peft_type")
    if str(kind).upper() != "LORA":
        raise RequestError(f"only LoRA adapters are supported; {CONFIG} has peft_type {kind!r}")
    more = [meaning for key, meaning in _CHANGED_MEANING.items() if config.get(key)]
    if config.get("bias", "none") != "none":
        more.append(f"biases (bias: {config['bias']})")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower() not in _PLAIN_STARTS:
        more.append(f"changed weights of the base (init_lora_weights: {start})")
    if more:
        raise RequestError(f"vLLM does not support {', '.join(more)} of this adapter; {_MERGE}")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise RequestError(f"the adapter's {CONFIG} has no valid rank: r is {rank!r}")
    if rank > HIGHEST_RANK:
        raise RequestError(f"the adapter has rank {rank}, but vLLM supports at most {HIGHEST_RANK}; {_MERGE}")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool):
        raise RequestError(f"the adapter's {CONFIG} has no valid scale: lora_alpha is {alpha!r}")
    if not config.get("target_modules"):
        raise RequestError(f"the adapter's {CONFIG} has no target_modules, which vLLM needs")
    return rank


def _check_extents(layers: Iterable[Layer], base: ModelDescription, made_for: str) -> None:
    by_name = dict(_extents(base))
    by_tail = defaultdict(set)
    for name, extents in by_name.items():
        by_tail[_tail(name)].add(extents)
    advice = f" (it was made for {made_for})" if made_for else ""
    for layer in layers:
        if _is_expert(layer.name):
            continue  # checkpoints store experts separately or stacked; vLLM checks them at first use
        known = {by_name[layer.name]} if layer.name in by_name else by_tail.get(_tail(layer.name), set())
        if not known and layer.module == "lm_head":  # tied to the embeddings
            known = {extents for name, extents in by_name.items() if name.endswith("embed_tokens")}
        if not known:
            raise RequestError(f"the adapter does not fit: the base model has no {layer.name}{advice}")
        found = (layer.extents[1], layer.extents[0]) if layer.embeds else layer.extents
        if not any(_agree(found, extents) for extents in known):
            outputs, inputs = next(iter(known))
            raise RequestError(
                f"the adapter does not fit: {layer.name} is {outputs or '?'} × {inputs or '?'} in the base model, but "
                f"the adapter is for {found[0]} × {found[1]}{advice}"
            )


def _extents(base: ModelDescription) -> Iterator[tuple[str, Extents]]:
    """Yield outputs and inputs of the base model's layers, as far as the format of its weights says."""
    for tensor in base.tensors:
        name, _, form = tensor.name.rpartition(".")
        if len(tensor.shape) != 2:
            continue
        first, second = tensor.shape
        if form == "weight":
            # bitsandbytes packs the values of a weight into a column of bytes.
            yield name, (None, None) if tensor.dtype in {"U8", "I8", "I32"} else (first, second)
        elif form == "weight_packed":
            yield name, (first, None)
        elif form == "qweight":
            # AWQ packs outputs, GPTQ packs inputs; both are stored transposed.
            yield name, (None, first) if base.quantization_level.startswith("AWQ") else (second, None)


def _agree(found: tuple[int, int], known: Extents) -> bool:
    return all(extent is None or extent == ours for ours, extent in zip(found, known, strict=True))


def _tail(name: str) -> str:
    """Return the name from the layer number on; the part before it has several spellings."""
    match = _LAYER.search(name)
    return match[0] if match else name.rpartition(".")[2]


def _is_expert(name: str) -> bool:
    return ".experts" in name
