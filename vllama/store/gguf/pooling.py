"""Files of Sentence Transformers, which say how an embedding model makes one vector of those of its tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vllama.errors import StoreError
from vllama.store.gguf.json_files import write_json
from vllama.store.gguf.placing import place
from vllama.store.gguf.reading import GgufFile
from vllama.store.gguf.writing import unpacked, write_weights

_MODES = {1: "pooling_mode_mean_tokens", 2: "pooling_mode_cls_token", 3: "pooling_mode_lasttoken"}
"""Values of `pooling_type` (gguf's `PoolingType`), and their names in Sentence Transformers."""

_RANK = 4
_DENSE = ("dense_2", "dense_3")
"""Layers after the pooling: EmbeddingGemma's."""


def embeds(file: GgufFile) -> bool:
    """Return whether the file says how to pool. Raises StoreError for models that rank instead of embedding."""
    kind = int(file.key("{arch}.pooling_type", 0))
    if kind == _RANK:
        raise StoreError("this model ranks documents, which cannot be converted; pull a safetensors repository of it")
    return kind in _MODES


def write_pooling(file: GgufFile, destination: Path, context_length: int) -> None:
    """Write modules.json and the directories that it names. The vectors have length 1, as Ollama's."""
    modules = [_module(0, "", "Transformer"), _module(1, "1_Pooling", "Pooling")]
    chosen = _MODES[int(file.key("{arch}.pooling_type"))]
    pooling = {mode: mode == chosen for mode in _MODES.values()}
    _write(
        destination / "1_Pooling" / "config.json",
        {"word_embedding_dimension": int(file.key("{arch}.embedding_length")), **pooling},
    )
    for name in _DENSE:
        if (tensor := file.tensors.get(f"{name}.weight")) is not None:
            folder = f"{len(modules)}_Dense"
            modules.append(_module(len(modules), folder, "Dense"))
            outputs, inputs = tensor.shape
            _write(
                destination / folder / "config.json",
                {
                    "in_features": inputs,
                    "out_features": outputs,
                    "bias": False,
                    "activation_function": "torch.nn.modules.linear.Identity",
                },
            )
            write_weights([unpacked(place("linear.weight", tensor))], destination / folder, lambda *_: None)
    modules.append(_module(len(modules), f"{len(modules)}_Normalize", "Normalize"))
    _write(destination / "modules.json", modules)
    _write(destination / "sentence_bert_config.json", {"max_seq_length": context_length, "do_lower_case": False})


def _module(number: int, path: str, kind: str) -> dict[str, Any]:
    return {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}


def _write(path: Path, record: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    write_json(path, record)
