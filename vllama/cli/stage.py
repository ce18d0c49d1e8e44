"""`vllama stage`: write models as a bundle for a machine without a network."""

from __future__ import annotations

from pathlib import Path

import click

from vllama.cli.progress import report
from vllama.cli.stored import open_store, with_hint
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
    help="Directory of the bundle; models are added to what it has.",
)
@click.option(
    "--wheels",
    is_flag=True,
    help="Add the wheels of vllama and of all that it runs on, as installed here; pip fetches them.",
)
@click.option(
    "--compile-cache",
    is_flag=True,
    help="Add what engines have compiled for these models, for machines like this one.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the progress as JSON, one object a line.")
def command(names: tuple[str, ...], directory: Path, *, wheels: bool, compile_cache: bool, as_json: bool) -> None:
    """Write models of the store (OLLAMA_MODELS) as a bundle.

    A bundle is a directory with all their files and checksums. On the machine that it is carried to, `vllama load`
    takes them in. Run it again after an interruption: what was written stays.
    """
    models = [ModelName.parse(name) for name in names]
    from vllama.store.stage import stage

    store = open_store()
    with with_hint(store):
        steps = stage(store, models, directory, wheels=wheels, compile_cache=compile_cache)
        report(steps, as_json=as_json)
