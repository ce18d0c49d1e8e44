"""Models that a command needs and that are not stored: pulled first, unless that is forbidden."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import closing

import click

from vllama.cli.api_client import ApiClient
from vllama.cli.progress import report
from vllama.errors import ModelNotFound, VllamaError
from vllama.names import ModelName
from vllama.settings import Settings
from vllama.store.model_store import ModelStore
from vllama.store.progress import Progress
from vllama.store.pull import pull

_ON = frozenset({"1", "ON", "YES", "TRUE"})
"""Values of HF_HUB_OFFLINE that forbid to contact the Hub, as huggingface_hub reads them."""


def may_pull(settings: Settings) -> bool:
    """Return whether a command may pull a model that it was not told to pull."""
    return settings.pull and os.environ.get("HF_HUB_OFFLINE", "").upper() not in _ON


def pull_missing(settings: Settings, models: Sequence[str]) -> None:
    """Pull the models that the server is to load at its start and that are not stored, with progress on stderr.

    `models` are those of the command line: NAME, or NAME=PATH, which needs no pull. Raises VllamaError if one of them
    cannot be pulled; for a model of OLLAMA_PRELOAD_MODELS there is a warning instead, since its load is only
    a convenience.
    """
    if not may_pull(settings):
        return
    store = ModelStore(settings.models, settings.precision)
    for text in models:
        if "=" not in text:
            _pull_unless_stored(store, ModelName.parse(text))
    for preload in settings.preload_models:
        try:
            _pull_unless_stored(store, ModelName.parse(preload.name))
        except VllamaError as error:
            click.echo(f"Warning: cannot pull {preload.name}: {error}", err=True)


def _pull_unless_stored(store: ModelStore, name: ModelName) -> None:
    try:
        store.get(name)
    except ModelNotFound:
        _report(name.display, pull(store, name))


def have_pulled(client: ApiClient, name: str) -> None:
    """Let the server pull the model, and show its progress on stderr. Raises the client's errors."""
    with closing(client.pull(name)) as records:
        _report(name, map(Progress.from_record, records))


def _report(name: str, steps: Iterator[Progress]) -> None:
    click.echo(f"{name} is not stored; pulling it. To forbid this, use --no-pull.", err=True)
    report(steps, as_json=False)
