"""`vllama import`: import models from an Ollama installation."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vllama.cli.local_store import open_store, precision_option
from vllama.cli.output import human_size, table
from vllama.cli.progress import report
from vllama.names import ModelName

if TYPE_CHECKING:
    from vllama.store.sources.ollama_store import Prospect


@click.command(
    "import",
    epilog="""\b
Examples:
  vllama import --ollama
  vllama import --ollama --dry-run
  vllama import --ollama llama3.2:3b mario
  vllama import --ollama --from /mnt/backup/.ollama/models""",
)
@click.argument("names", nargs=-1)
@click.option("--ollama", is_flag=True, required=True, help="Import from Ollama's own store.")
@click.option(
    "--from",
    "directory",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Directory of Ollama's store (its OLLAMA_MODELS); default: the first of its usual directories that exists.",
)
@precision_option
@click.option("--force", is_flag=True, help="Replace stored models that have the same names.")
@click.option(
    "--dry-run", is_flag=True, help="Only print what would become of each model: memory, error, or why it is refused."
)
@click.option("--json", "as_json", is_flag=True, help="Print progress, or the dry run, as JSON, one object per line.")
def command(
    names: tuple[str, ...],
    directory: Path | None,
    precision: str | None,
    *,
    ollama: bool,
    force: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Import models from an Ollama installation on this machine.

    Imports the models with these NAMES, or all of Ollama's models, into the model store (OLLAMA_MODELS). Weights are
    converted from GGUF to safetensors, which takes time and disk space; parameters, system message, template, messages
    and licence are imported too. Ollama's files are not changed. Models that cannot be converted are listed before the
    first conversion and skipped; the exit code is then 1.
    """
    del ollama  # required, but there is no other source
    from vllama.store.sources.ollama_store import PLACES, find_store, import_models, prospects

    store = open_store(precision)
    wanted = [ModelName.parse(name) for name in names]
    usual = [*(Path(place).expanduser() for place in PLACES), store.root]
    source = find_store([directory, directory / "models"] if directory else usual)
    if dry_run:
        _print_prospects(prospects(source, wanted, store.precision), as_json=as_json)
        return
    report(import_models(store, source, wanted, force=force), as_json=as_json)


def _print_prospects(found: Iterable[Prospect], *, as_json: bool) -> None:
    """Print a table, or one JSON object a line; exit with 1 if a model would be refused."""
    rows, refused = [], False
    for prospect in found:
        refused = refused or bool(prospect.refused)
        forecast = prospect.forecast
        if as_json:
            click.echo(
                json.dumps(
                    {
                        "name": prospect.name.display,
                        "size": prospect.size,
                        "quantization_level": forecast.file_type if forecast else "",
                        "weights": forecast.weights if forecast else "",
                        "memory": forecast.bytes if forecast else 0,
                        "refused": prospect.refused,
                    }
                )
            )
        elif forecast:
            sizes = (human_size(prospect.size), human_size(forecast.bytes))
            rows.append((prospect.name.display, forecast.file_type, *sizes, forecast.weights))
        else:
            rows.append((prospect.name.display, "-", "-", "-", f"refused: {prospect.refused}"))
    if not as_json:
        click.echo(table(("NAME", "TYPE", "FILE", "MEMORY", "WEIGHTS"), rows))
    if refused:
        raise click.exceptions.Exit(1)
