"""LoRA adapters in GGUF → PEFT's layout, for a base that is here: its own files say what its layers are called.

The work needs numpy and gguf, which the gateway does without, so it runs in a process of its own:
`python -m vllama.store.gguf_adapter SOURCE DESTINATION BASE`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vllama.errors import RequestError
from vllama.store.description import read_config
from vllama.store.gguf import run_converter
from vllama.store.peft import CONFIG, WEIGHTS
from vllama.store.snapshot import weight_files
from vllama.store.weights import read_tensors

_FAMILIES = {
    "gemma2": ("gemma2",),
    "gemma3": ("gemma3", "gemma3_text"),
    "llama": ("llama", "mistral"),
    "phi3": ("phi3",),
    "qwen2": ("qwen2",),
    "qwen3": ("qwen3",),
}
"""GGUF's architectures, and config.json's `model_type` of the same."""

_HEADS = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}
"""Layers whose outputs llama.cpp has in another order, where the architecture is "llama"."""

_FORMS = ("weight", "qweight", "weight_packed")


def convert(source: Path, destination: Path, base: Path) -> None:
    """Write the adapter of the GGUF file `source` over the snapshot `base` to a new directory. Raises RequestError."""
    how, last = run_converter("vllama.store.gguf_adapter", source, destination, base)
    if how:
        why = last.splitlines()[-1] if last else f"the converter ended with {how}"
        raise RequestError(f"the adapter in GGUF cannot be converted: {why}")


def main(arguments: list[str]) -> None:
    """Run the conversion in this process."""
    source, destination, base = map(Path, arguments)
    try:
        import numpy as np
        from gguf import GGUFReader
        from safetensors.numpy import save_file
    except ImportError as error:
        sys.exit(f"reading GGUF needs gguf, numpy and safetensors, which come with vLLM: {error}")
    reader = GGUFReader(source)
    architecture, alpha = _read_keys(reader)
    config = read_config(base)
    if config.get("model_type") not in _FAMILIES.get(architecture, ()):
        sys.exit(f"it is for the architecture {architecture!r}, the base is a {config.get('model_type')!r}")
    matrices = dict(_matrices(reader, architecture, _names(base, architecture), config))
    ranks = {array.shape[0] for name, array in matrices.items() if name.endswith("A.weight")}
    if len(ranks) != 1:
        sys.exit(f"its layers have the ranks {sorted(ranks)}, and vLLM needs one for all")
    (rank,) = ranks
    destination.mkdir(parents=True)
    save_file({name: np.ascontiguousarray(matrices[name]) for name in sorted(matrices)}, destination / WEIGHTS)
    said = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha or rank,  # none is a scale of 1 (llama.cpp: `llama_adapter_lora_weight::get_scale`)
        "target_modules": sorted({name.split(".")[-3] for name in matrices}),
        "bias": "none",
    }
    (destination / CONFIG).write_text(json.dumps(said, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for path in destination.iterdir():
        path.chmod(0o644)  # safetensors makes its files private


def _read_keys(reader: Any) -> tuple[str, float]:
    """The architecture and lora_alpha. Ends the process where the file holds something else."""

    def value(key: str) -> Any:
        field = reader.get_field(key)
        return field.contents() if field else None

    if value("general.type") != "adapter" or value("adapter.type") != "lora":
        sys.exit(
            f"it is no LoRA adapter (general.type: {value('general.type')}, adapter.type: {value('adapter.type')})"
        )
    return str(value("general.architecture")), float(value("adapter.lora.alpha") or 0)


def _names(base: Path, architecture: str) -> dict[str, str]:
    """GGUF's names of the base's layers, with those of its own files."""
    import gguf

    tensors = read_tensors(weight_files(base))
    layers = [tensor.name.rpartition(".")[0] for tensor in tensors if tensor.name.endswith(_FORMS)]
    kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    known = gguf.get_tensor_name_map(kind, len(layers))
    return {found: layer for layer in layers if (found := known.get_name(layer))}


def _matrices(
    reader: Any, architecture: str, names: dict[str, str], config: dict[str, Any]
) -> Iterator[tuple[str, Any]]:
    """PEFT's names and the values: A is rank × inputs, B outputs × rank."""
    import gguf

    for tensor in reader.tensors:
        name, _, half = tensor.name.rpartition(".weight.lora_")
        layer = names.get(name)
        if half not in {"a", "b"} or layer is None or name == "token_embd":
            sys.exit(f"it changes {tensor.name}, which the base does not have or which cannot be converted")
        values = gguf.dequantize(tensor.data, tensor.tensor_type).astype("float32")
        part = name.rpartition(".")[2]
        if half == "b" and architecture == "llama" and part in _HEADS:
            heads = config.get(_HEADS[part]) or config["num_attention_heads"]
            pairs = values.reshape(heads, values.shape[0] // heads // 2, 2, -1)
            values = pairs.swapaxes(1, 2).reshape(values.shape)
        yield f"base_model.model.{layer}.lora_{half.upper()}.weight", values


if __name__ == "__main__":
    main(sys.argv[1:])
