"""`vllama cp`: give a model another name."""

from __future__ import annotations

import click

from vllama.cli.stored import open_store, with_hint
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
    """Give a model in the store (OLLAMA_MODELS) another name.

    The files are shared, not copied.
    """
    names = ModelName.parse(source), ModelName.parse(destination)
    store = open_store()
    with with_hint(store):
        store.copy(*names)
    click.echo(f"copied '{source}' to '{destination}'")
