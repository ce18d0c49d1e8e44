"""`vllama import`: make models of those that another program has on this machine."""

from __future__ import annotations

from pathlib import Path

import click

from vllama.cli.progress import report
from vllama.cli.stored import open_store
from vllama.names import ModelName


@click.command(
    "import",
    epilog="""\b
Examples:
  vllama import --ollama
  vllama import --ollama llama3.2:3b mario
  vllama import --ollama --from /mnt/backup/.ollama/models""",
)
@click.argument("names", nargs=-1)
@click.option("--ollama", is_flag=True, required=True, help="Import from Ollama's own store.")
@click.option(
    "--from",
    "directory",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Its directory, what OLLAMA_MODELS is for Ollama; else the usual ones are looked at.",
)
@click.option("--force", is_flag=True, help="Also replace models of these names that are here already.")
@click.option("--json", "as_json", is_flag=True, help="Print the progress as JSON, one object a line.")
def command(names: tuple[str, ...], directory: Path | None, *, ollama: bool, force: bool, as_json: bool) -> None:
    """Make models in the store (OLLAMA_MODELS) of those that Ollama has here; all, if none is named.

    Weights are converted from GGUF to safetensors, which takes room and time; parameters, system message, template,
    messages and licence come with them. Ollama's files are only read. A model that cannot be converted is told before
    the first conversion, and left out; the exit code is 1 then.
    """
    del ollama  # the only place to import from
    from vllama.store.sources.ollama_store import PLACES, find_store, import_models

    store = open_store()
    wanted = [ModelName.parse(name) for name in names]
    usual = [*(Path(place).expanduser() for place in PLACES), store.root]
    source = find_store([directory, directory / "models"] if directory else usual)
    report(import_models(store, source, wanted, force=force), as_json=as_json)
