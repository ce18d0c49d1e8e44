"""All architectures that can be converted."""

from __future__ import annotations

from collections.abc import Mapping

from vllama.store.gguf.architectures import (
    cohere,
    deepseek,
    encoders,
    gemma,
    gemma3n,
    glm,
    gpt,
    gpt_oss,
    granite,
    lfm,
    llama,
    llama4,
    mamba,
    olmo,
    phi,
    qwen,
    qwen_next,
)
from vllama.store.gguf.architectures.table import Architecture

_FAMILIES = (
    cohere,
    deepseek,
    encoders,
    gemma,
    gemma3n,
    glm,
    gpt,
    gpt_oss,
    granite,
    lfm,
    llama,
    llama4,
    mamba,
    olmo,
    phi,
    qwen,
    qwen_next,
)

TABLE: Mapping[str, Architecture] = {name: entry for family in _FAMILIES for name, entry in family.TABLE.items()}
"""By the value of `general.architecture`."""
