"""Small LoRA adapters in PEFT's layout, with random values."""

from __future__ import annotations

import json
import random
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Extents = Mapping[str, tuple[int, int]]
"""Outputs and inputs of the layers that are changed."""


def write_adapter(
    directory: Path, layers: Extents, *, rank: int = 8, seed: int = 0, scale: float = 1.0, **config: Any
) -> Path:
    """Write an adapter whose matrices have values of about `scale`; `config` adds to its settings.

    Same seed, same bytes. Returns `directory`.
    """
    directory.mkdir(parents=True)
    values = random.Random(seed)
    header: dict[str, Any] = {}
    data = b""
    for name, (outputs, inputs) in layers.items():
        for half, shape in (("A", (rank, inputs)), ("B", (outputs, rank))):
            numbers = array("f", (values.gauss(0, scale) for _ in range(shape[0] * shape[1]))).tobytes()
            offsets = [len(data), len(data) + len(numbers)]
            header[f"base_model.model.{name}.lora_{half}.weight"] = {
                "dtype": "F32",
                "shape": shape,
                "data_offsets": offsets,
            }
            data += numbers
    text = json.dumps(header).encode()
    (directory / "adapter_model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    said = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": sorted({name.rpartition(".")[2] for name in layers}),
        "bias": "none",
        **config,
    }
    (directory / "adapter_config.json").write_text(json.dumps(said))
    return directory


def attention_of(blocks: int, width: int, heads_width: int) -> Extents:
    """The query and value projections of a Llama with so many blocks, a hidden size, and the size of all its heads."""
    names = (f"model.layers.{block}.self_attn.{part}_proj" for block in range(blocks) for part in "qv")
    return dict.fromkeys(names, (heads_width, width))
