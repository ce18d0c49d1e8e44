"""Counts tokens as the model does, where its tokenizer is at hand."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from vllama import settings_file
from vllama.bench.prompts import BadWorkload
from vllama.errors import VllamaError
from vllama.names import ModelName
from vllama.store.model_store import ModelStore

_FILE = "tokenizer.json"


def tokenizer_for(model: str, path: Path | None) -> Callable[[str], int] | None:
    """Return what counts the tokens of a text, from this file or from the model in the store; None if neither is there.

    Raises BadWorkload if the file is no tokenizer, or if there is nothing to read it with.
    """
    found = _in_directory(path) if path else _in_store(model)
    if found is None:
        return None
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        if path is None:
            return None
        message = "--tokenizer needs the package `tokenizers`; vLLM brings it"
        raise BadWorkload(message) from error
    try:
        tokenizer = Tokenizer.from_file(str(found))
    except Exception as error:  # it raises nothing more exact
        message = f"{found}: no tokenizer: {error}"
        raise BadWorkload(message) from error
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


def _in_directory(path: Path) -> Path:
    return path / _FILE if path.is_dir() else path


def _in_store(model: str) -> Path | None:
    settings = settings_file.load(os.environ)
    try:
        manifest = ModelStore(settings.models).get(ModelName.parse(model))
    except VllamaError:
        return None
    found = Path(manifest.snapshot) / _FILE
    return found if found.is_file() else None
