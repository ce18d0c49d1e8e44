"""Access to the model store for commands that need no server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from vllama import settings_file
from vllama.errors import ModelNotFound, StoreError
from vllama.settings import PRECISIONS

if TYPE_CHECKING:
    from vllama.store.model_store import ModelStore


precision_option = click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    help="Weights of GGUF files: keep their quantization, or decode it; default: VLLAMA_PRECISION, else exact.",
)


def open_store(precision: str | None = None) -> ModelStore:
    """Return the store that OLLAMA_MODELS names; it converts GGUF files with this precision, or the settings'."""
    from vllama.ollama import template_limits
    from vllama.store.gguf import limits as converter_limits
    from vllama.store.model_store import ModelStore

    settings = settings_file.load(os.environ)
    template_limits.set_limits(template_limits.limits_of(settings))
    converter_limits.set_limits(settings)
    return ModelStore(settings.models, settings.precision).converting(precision or "")


@contextmanager
def with_hint(store: ModelStore) -> Iterator[None]:
    """Add the store's path to the error if a model is not found: a server may have another store."""
    try:
        yield
    except ModelNotFound as error:
        raise StoreError(f"{error} in {store.root} (OLLAMA_MODELS)") from None
