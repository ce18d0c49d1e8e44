"""Names of the architectures that can be converted. The gateway reads them, so this module imports next to nothing."""

from collections.abc import Mapping
from typing import Any

ARCHITECTURES = (
    "arcee", "bert", "bloom", "chatglm", "cohere2", "command-r", "deepseek2", "ernie4_5", "exaone", "exaone4",
    "falcon", "gemma", "gemma-embedding", "gemma2", "gemma3", "gemma3n", "gemma4", "glm4", "glm4moe",
    "gpt-oss", "gpt2", "granite", "granitehybrid", "granitemoe", "hunyuan-dense", "internlm2", "lfm2",
    "lfm2moe", "llama", "llama4", "mamba", "minicpm", "minimax-m2", "mistral3", "modern-bert", "nemotron", "nomic-bert",
    "nomic-bert-moe", "olmo",
    "olmo2", "olmoe", "phi2", "phi3", "phimoe", "qwen2", "qwen25vl", "qwen2moe", "qwen2vl", "qwen3", "qwen35",
    "qwen35moe",
    "qwen3moe", "qwen3next", "seed_oss", "smollm3", "stablelm", "starcoder2",
)  # fmt: skip
"""Values of `general.architecture` that have an entry in `entries.TABLE`."""

PROJECTOR = "clip"
"""The architecture of a file that has a vision tower only: llama.cpp's "mmproj"."""

VISION_TEXTS: dict[str, tuple[str, ...]] = {
    "gemma3": ("gemma3",),
    "mlp": ("llama",),
    "pixtral": ("llama", "mistral3"),
    "qwen2.5vl_merger": ("qwen25vl", "qwen2vl"),
}
"""Kinds of towers that have an entry in `vision.entries.TABLE`, and the architectures of the text models for them.

A kind is a value of `clip.projector_type`."""

VISION_INSIDE = {"gemma3": "gemma3", "mistral3": "pixtral", "qwen25vl": "qwen2.5vl_merger"}
"""The kind of the tower inside Ollama's own files, by their architecture."""

_OLDEST_KIND = "mlp"
"""The kind of towers in files without `clip.projector_type`: LLaVA's."""


def projector_kind(keys: Mapping[str, Any]) -> str:
    """Return the kind of the tower in a file of its own."""
    return str(keys.get("clip.vision.projector_type") or keys.get("clip.projector_type") or _OLDEST_KIND)


REFUSED = {
    "mllama": "vLLM has removed Llama 3.2 Vision",
}
"""Architectures that are refused for a known cause."""
