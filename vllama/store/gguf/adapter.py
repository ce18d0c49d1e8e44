"""Conversion of LoRA adapters from GGUF to PEFT's layout, for a stored base model, whose files name its layers.

The work needs numpy and gguf, which the gateway does not import, so it runs in a separate process:
`python -m vllama.store.gguf.adapter SOURCE DESTINATION BASE`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vllama.errors import RequestError
from vllama.store.description import read_config
from vllama.store.gguf.conversion import ConverterFailed, run_as_converter, run_converter
from vllama.store.gguf.header import read_contents
from vllama.store.gguf.json_files import write_json
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
"""Architectures in GGUF, and their `model_type` in config.json."""

_HEADS = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}
"""Layers whose outputs llama.cpp stores in another order for architecture "llama"."""

_FORMS = ("weight", "qweight", "weight_packed")


def convert(source: Path, destination: Path, base: Path) -> None:
    """Convert the GGUF adapter `source` for the snapshot `base` to a new directory. Raises RequestError."""
    try:
        for _ in run_converter("vllama.store.gguf.adapter", source, destination, base):
            pass
    except ConverterFailed as error:
        why = error.last.splitlines()[-1] if error.last else f"the converter ended with {error.how}"
        raise RequestError(f"cannot convert the GGUF adapter: {why}") from None


def main(arguments: list[str]) -> None:
    """Run the conversion in this process."""
    source, destination, base = map(Path, arguments)
    try:
        from gguf import GGUFReader
        from safetensors.numpy import save_file
    except ImportError as error:
        sys.exit(f"reading GGUF requires gguf, numpy and safetensors, which vLLM installs: {error}")
    run_as_converter(lambda: _convert(source, destination, base, GGUFReader, save_file))


def _convert(source: Path, destination: Path, base: Path, reader_class: Any, save_file: Any) -> None:
    import numpy as np

    read_contents(source)  # refuses what gguf's reader believes
    reader = reader_class(source)
    architecture, alpha = _read_keys(reader)
    config = read_config(base)
    if config.get("model_type") not in _FAMILIES.get(architecture, ()):
        sys.exit(f"it is for architecture {architecture!r}, but the base model is {config.get('model_type')!r}")
    matrices = dict(_matrices(reader, architecture, _names(base, architecture), config))
    ranks = {array.shape[0] for name, array in matrices.items() if name.endswith("A.weight")}
    if len(ranks) != 1:
        sys.exit(f"its layers have different ranks {sorted(ranks)}; vLLM requires the same rank for all")
    (rank,) = ranks
    destination.mkdir(parents=True)
    save_file({name: np.ascontiguousarray(matrices[name]) for name in sorted(matrices)}, destination / WEIGHTS)
    said = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha or rank,  # no alpha means a scale of 1 (llama.cpp: `llama_adapter_lora_weight::get_scale`)
        "target_modules": sorted({name.split(".")[-3] for name in matrices}),
        "bias": "none",
    }
    write_json(destination / CONFIG, said)
    for path in destination.iterdir():
        path.chmod(0o644)  # safetensors creates private files


def _read_keys(reader: Any) -> tuple[str, float]:
    """Return architecture and lora_alpha. Ends the process if the file is not a LoRA adapter."""

    def value(key: str) -> Any:
        field = reader.get_field(key)
        return field.contents() if field else None

    if value("general.type") != "adapter" or value("adapter.type") != "lora":
        sys.exit(
            f"it is not a LoRA adapter (general.type: {value('general.type')}, adapter.type: {value('adapter.type')})"
        )
    return str(value("general.architecture")), float(value("adapter.lora.alpha") or 0)


def _names(base: Path, architecture: str) -> dict[str, str]:
    """Map the GGUF names of the base model's layers to the names in its files."""
    import gguf

    tensors = read_tensors(weight_files(base))
    layers = [tensor.name.rpartition(".")[0] for tensor in tensors if tensor.name.endswith(_FORMS)]
    kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    known = gguf.get_tensor_name_map(kind, len(layers))
    return {found: layer for layer in layers if (found := known.get_name(layer))}


def _matrices(
    reader: Any, architecture: str, names: dict[str, str], config: dict[str, Any]
) -> Iterator[tuple[str, Any]]:
    """Yield names in PEFT's layout and values: A is rank × inputs, B outputs × rank."""
    import gguf

    for tensor in reader.tensors:
        name, _, half = tensor.name.rpartition(".weight.lora_")
        layer = names.get(name)
        if half not in {"a", "b"} or layer is None or name == "token_embd":
            sys.exit(f"it changes {tensor.name}, which is missing in the base model or cannot be converted")
        values = gguf.dequantize(tensor.data, tensor.tensor_type).astype("float32")
        part = name.rpartition(".")[2]
        if half == "b" and architecture == "llama" and part in _HEADS:
            heads = config.get(_HEADS[part]) or config["num_attention_heads"]
            pairs = values.reshape(heads, values.shape[0] // heads // 2, 2, -1)
            values = pairs.swapaxes(1, 2).reshape(values.shape)
        yield f"base_model.model.{layer}.lora_{half.upper()}.weight", values


if __name__ == "__main__":
    main(sys.argv[1:])
