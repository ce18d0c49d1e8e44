"""Whether a model has a processor whose chat template vLLM should look for.

Before vLLM takes a tokenizer's own chat template, it loads the model's processor and looks for one there
(`vllm/renderers/hf.py`, `_try_get_processor_chat_template`, in 0.32 and 0.33). For a model without a processor,
transformers loads the tokenizer instead, once more: a second of each start for a vocabulary of 150,000 tokens. Another
vLLM that has no such function is left as it is.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

_LOOKUP = "_try_get_processor_chat_template"


def register() -> None:
    """Have vLLM look for no template in a processor that is not there; the second time does nothing."""
    try:
        from vllm.renderers import hf
    except ImportError:
        return
    look = getattr(hf, _LOOKUP, None)
    if look is not None and not hasattr(look, "__wrapped__"):
        setattr(hf, _LOOKUP, where_there_is_one(look))


def where_there_is_one(look: Callable[..., str | None]) -> Callable[..., str | None]:
    """Return vLLM's function, which looks for the template of a processor, for models that may have one."""

    @functools.wraps(look)
    def template(tokenizer: Any, **named: Any) -> str | None:
        return None if has_no_processor(Path(tokenizer.name_or_path)) else look(tokenizer, **named)

    return template


def has_no_processor(snapshot: Path) -> bool:
    """Return whether transformers would find no processor in a folder; False also where the folder cannot be read.

    It looks for files of processors, for a class that config.json or tokenizer_config.json names, and for one that
    belongs to the type of model (transformers/models/auto/processing_auto.py, `AutoProcessor.from_pretrained`).
    """
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    try:
        model, tokenizer = (
            json.loads((snapshot / name).read_bytes()) for name in ("config.json", "tokenizer_config.json")
        )
        if any(snapshot.glob("*processor_config.json")):
            return False
        if any(
            "processor_class" in config or "AutoProcessor" in config.get("auto_map", ())
            for config in (model, tokenizer)
        ):
            return False
        return model["model_type"] not in PROCESSOR_MAPPING_NAMES
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False
