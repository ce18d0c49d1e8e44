"""`vllama cp`: copy a model to a new name."""

from __future__ import annotations

import click

from vllama.cli.local_store import open_store, with_hint
from vllama.names import ModelName


@click.command(
    "cp",
    epilog="""\b
Example:
  vllama cp smollm2:135m gpt-4""",
)
@click.argument("source")
@click.argument("destination")
def command(source: str, destination: str) -> None:
    """Copy a model to a new name.

    The two names share the files in the model store (OLLAMA_MODELS), so the copy takes no disk space.
    """
    names = ModelName.parse(source), ModelName.parse(destination)
    store = open_store()
    with with_hint(store):
        store.copy(*names)
    click.echo(f"copied '{source}' to '{destination}'")
