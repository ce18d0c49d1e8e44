"""Small snapshots made by hand: real files in the real formats, a few hundred bytes each."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vllama.names import ModelName
from vllama.store.manifest import Manifest, ManifestFile, Source

LLAMA_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "dtype": "bfloat16",
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-05,
    "rope_parameters": {"rope_theta": 100000.0, "rope_type": "default"},
    "vocab_size": 32,
}

CHATML = (
    "{%- for message in messages -%}{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] "
    "+ '<|im_end|>\\n' -}}{%- endfor -%}"
)

_BYTES = {"F32": 4, "I32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "U8": 1}

Tensors = Mapping[str, tuple[str, list[int]]]


def write_safetensors(path: Path, tensors: Tensors) -> None:
    """Write tensors of zeros: `{name: (dtype, shape)}`."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + math.prod(shape) * _BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(end))


def write_snapshot(
    directory: Path,
    *,
    config: Mapping[str, Any] | None = None,
    tensors: Tensors | None = None,
    files: Mapping[str, str | Mapping[str, Any] | None] | None = None,
) -> Path:
    """Write a snapshot of a Llama; `files` adds files or, with None, leaves them out. Returns `directory`."""
    directory.mkdir(parents=True)
    contents: dict[str, str | Mapping[str, Any] | None] = {
        "config.json": LLAMA_CONFIG | dict(config or {}),
        "generation_config.json": {"bos_token_id": 1, "eos_token_id": 2},
        "tokenizer.json": {"model": {"type": "BPE", "vocab": {"b": 1, "a": 0}, "merges": [["a", "b"]]}},
        "tokenizer_config.json": {"model_max_length": 8192},
        "chat_template.jinja": CHATML,
        **(files or {}),
    }
    for path, content in contents.items():
        if content is not None:
            (directory / path).parent.mkdir(parents=True, exist_ok=True)
            text = content if isinstance(content, str) else json.dumps(content)
            (directory / path).write_text(text, encoding="utf-8")
    default = {"model.embed_tokens.weight": ("BF16", [32, 8]), "model.norm.weight": ("F32", [8])}
    write_safetensors(directory / "model.safetensors", default if tensors is None else tensors)
    return directory


def make_manifest(name: str = "smollm2:135m", snapshot: Path = Path("/snapshot"), **changes: Any) -> Manifest:
    """Return a manifest; its files are those of the snapshot if that exists (checksums made up)."""
    manifest = Manifest(
        name=ModelName.parse(name),
        snapshot=snapshot,
        files=tuple(
            ManifestFile(str(path.relative_to(snapshot)), path.stat().st_size, "0" * 64)
            for path in sorted(snapshot.rglob("*"))
            if path.is_file()
        ),
        source=Source("local", str(snapshot), ""),
        parameters={},
        system="",
        template="",
        license="",
        messages=(),
        engine_flags=(),
        modified_at=datetime(2026, 9, 1, 12, tzinfo=UTC),
    )
    return replace(manifest, **changes)
