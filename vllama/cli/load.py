"""`vllama load`: take models out of a bundle into the store."""

from __future__ import annotations

from pathlib import Path

import click

from vllama.cli.progress import report
from vllama.cli.stored import open_store
from vllama.names import ModelName


@click.command(
    "load",
    epilog="""\b
Examples:
  vllama load /media/usb/models
  vllama load /media/usb/models smollm2:135m""",
)
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("names", nargs=-1)
@click.option("--link", is_flag=True, help="Share the files with the bundle, on one disk, instead of copying them.")
@click.option(
    "--trust-remote-code",
    is_flag=True,
    help="Let the workers of models that were pulled with this option run the Python code that came with them.",
)
@click.option(
    "--compile-cache",
    is_flag=True,
    help="Take what engines have compiled for the models, too. It is code: only from a bundle that you trust.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the progress as JSON, one object a line.")
def command(
    directory: Path, names: tuple[str, ...], *, link: bool, trust_remote_code: bool, compile_cache: bool, as_json: bool
) -> None:
    """Take models out of a bundle, which `vllama stage` wrote, into the store (OLLAMA_MODELS).

    All of them, or those of these NAMES. Every file is checked; a name is stored when it is whole. A running server
    with the same store knows the model at once.
    """
    models = [ModelName.parse(name) for name in names]
    from vllama.store.load import load

    steps = load(
        open_store(), directory, models, link=link, trust_remote_code=trust_remote_code, compile_cache=compile_cache
    )
    report(steps, as_json=as_json)
