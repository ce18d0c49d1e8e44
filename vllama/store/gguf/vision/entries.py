"""All kinds of vision towers that can be converted."""

from __future__ import annotations

from collections.abc import Mapping

from vllama.store.gguf.vision import gemma3, llava, mistral3, qwen_vl
from vllama.store.gguf.vision.table import VisionModel

TABLE: Mapping[str, VisionModel] = {**gemma3.TABLE, **llava.TABLE, **mistral3.TABLE, **qwen_vl.TABLE}
"""By the value of `clip.projector_type`; `architectures.names.VISION_TEXTS` has the same keys."""
