"""`vllama rm`: remove models."""

from __future__ import annotations

from contextlib import suppress

import click

from vllama.cli.client import Client
from vllama.cli.stored import open_store, with_hint
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
    """Remove models from the store (OLLAMA_MODELS).

    A server that runs is asked to unload them first. Files that other models share stay, the others are deleted.
    """
    from vllama.store.garbage import delete

    models = [ModelName.parse(name) for name in names]
    store = open_store()
    for typed, model in zip(names, models, strict=True):
        with with_hint(store), suppress(ManifestCorrupt):  # a damaged one can be removed, too
            store.get(model)
        with suppress(ServerError):  # no server, or one that does not know it: nothing to unload
            Client.from_environment().post("/api/generate", {"model": typed, "keep_alive": 0})
        delete(store, model)
        click.echo(f"deleted '{typed}'")
