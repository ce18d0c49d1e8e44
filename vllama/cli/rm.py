"""`vllama rm`: remove models."""

from __future__ import annotations

from contextlib import suppress

import click

from vllama.cli.api_client import ApiClient
from vllama.cli.local_store import open_store, with_hint
from vllama.errors import ManifestCorrupt, ServerError
from vllama.names import ModelName


@click.command(
    "rm",
    epilog="""\b
Example:
  vllama rm mario luigi""",
)
@click.argument("names", nargs=-1, required=True)
def command(names: tuple[str, ...]) -> None:
    """Remove models from the model store (OLLAMA_MODELS).

    If a server is running, it unloads them first. Files that other models share are kept.
    """
    from vllama.store.garbage import delete

    models = [ModelName.parse(name) for name in names]
    store = open_store()
    for typed, model in zip(names, models, strict=True):
        with with_hint(store), suppress(ManifestCorrupt):  # damaged models can be removed too
            store.get(model)
        with suppress(ServerError):  # no server, or the model is unknown to it: nothing to unload
            ApiClient.from_environment().post("/api/generate", {"model": typed, "keep_alive": 0})
        delete(store, model)
        click.echo(f"deleted '{typed}'")
