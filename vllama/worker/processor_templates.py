"""Skip vLLM's search for a processor's chat template where a model has no processor.

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
    """Make vLLM skip the search for models without a processor; a second call does nothing."""
    try:
        from vllm.renderers import hf
    except ImportError:
        return
    look = getattr(hf, _LOOKUP, None)
    if look is not None and not hasattr(look, "__wrapped__"):
        setattr(hf, _LOOKUP, only_with_processor(look))


def only_with_processor(look: Callable[..., str | None]) -> Callable[..., str | None]:
    """Wrap vLLM's search so that it runs only for models that may have a processor."""

    @functools.wraps(look)
    def template(tokenizer: Any, **named: Any) -> str | None:
        return None if has_no_processor(Path(tokenizer.name_or_path)) else look(tokenizer, **named)

    return template


@functools.cache  # vLLM asks at each request, and the files of a served model do not change
def has_no_processor(snapshot: Path) -> bool:
    """Return True if transformers would find no processor in a folder; False if the folder cannot be read.

    Transformers looks for processor files, for a class that config.json or tokenizer_config.json names, and for the
    class of the model type (transformers/models/auto/processing_auto.py, `AutoProcessor.from_pretrained`).
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
