"""The store that commands work on where they need no server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vllama import settings_file
from vllama.errors import ModelNotFound, StoreError

if TYPE_CHECKING:
    from vllama.store.model_store import ModelStore


def open_store() -> ModelStore:
    """Return the store that OLLAMA_MODELS names."""
    from vllama.store.model_store import ModelStore

    return ModelStore(settings_file.load(os.environ).models)


@contextmanager
def with_hint(store: ModelStore) -> Iterator[None]:
    """Where a model is not found, say where it was looked for: a server may have another store."""
    try:
        yield
    except ModelNotFound as error:
        raise StoreError(f"{error} in {store.root} (OLLAMA_MODELS)") from None
