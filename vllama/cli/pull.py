"""`vllama pull`: put a model into the local store."""

from __future__ import annotations

import os
from pathlib import Path

import click

from vllama.cli.progress import report
from vllama.names import ModelName
from vllama.settings import Settings


@click.command(
    "pull",
    epilog="""\b
Examples:
  vllama pull smollm2:135m
  vllama pull my-model --from ./snapshot""",
)
@click.argument("name")
@click.option(
    "--from",
    "from_path",
    type=click.Path(exists=True, path_type=Path),
    help="Take the model from this directory or file instead of downloading it.",
)
@click.option("--force", is_flag=True, help="Fetch it again even if it is stored already.")
@click.option("--json", "as_json", is_flag=True, help="Print the progress as JSON, one object a line.")
def command(name: str, from_path: Path | None, *, force: bool, as_json: bool) -> None:
    """Put a model into the store (OLLAMA_MODELS).

    Needs no server; a running server with the same store knows the model at once.
    """
    model = ModelName.parse(name)
    from vllama.store.model_store import ModelStore
    from vllama.store.pull import pull

    store = ModelStore(Settings.from_environment(os.environ).models)
    steps = pull(store, model, from_path=from_path, force=force)
    report(steps, as_json=as_json)
