"""The tokenizer of a snapshot that was converted from GGUF, read as it is written.

transformers (from 5.0 on) rebuilds the tokenizers of some types of models, such as Qwen 2, with a normalizer and
regular expressions of its own, whatever tokenizer.json says: `MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS` in
transformers/models/auto/tokenization_auto.py. Our own snapshots name the class that reads the file as it is.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

AS_WRITTEN = "TokenizersBackend"
"""The class of transformers that takes everything from tokenizer.json."""


_OF_THE_CHOICE = ("config", "tokenizer_type", "trust_remote_code", "use_fast")
"""Arguments by which `AutoTokenizer` chooses a class."""


def register() -> None:
    """Let `AutoTokenizer` heed a snapshot that names this class; the second time does nothing."""
    import transformers

    auto: Any = transformers.AutoTokenizer
    if not hasattr(auto.from_pretrained, "__wrapped__"):
        auto.from_pretrained = heeding(auto.from_pretrained)


def heeding(choose: Callable[..., Any]) -> Callable[..., Any]:
    """Return transformers' function, which chooses a class, for all snapshots but those that name ours."""

    @functools.wraps(choose)
    def from_pretrained(name: Any, *positional: Any, **named: Any) -> Any:
        if not _is_as_written(Path(str(name))):
            return choose(name, *positional, **named)
        import transformers

        kept = {argument: value for argument, value in named.items() if argument not in _OF_THE_CHOICE}
        return transformers.PreTrainedTokenizerFast.from_pretrained(name, *positional, **kept)

    return from_pretrained


def _is_as_written(snapshot: Path) -> bool:
    try:
        config = json.loads((snapshot / "tokenizer_config.json").read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("tokenizer_class") == AS_WRITTEN
