"""`vllama load`: copy models from a bundle into the model store."""

from __future__ import annotations

from pathlib import Path

import click

from vllama.cli.local_store import open_store
from vllama.cli.progress import report
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
@click.option("--link", is_flag=True, help="Hard-link the bundle's files instead of copying them (same disk only).")
@click.option(
    "--trust-remote-code",
    is_flag=True,
    help="Allow models that were pulled with this option to run their own Python code here too.",
)
@click.option(
    "--compile-cache",
    is_flag=True,
    help="Also copy compiled code of the models. Engines execute it, so use this only with a bundle that you trust.",
)
@click.option("--json", "as_json", is_flag=True, help="Print progress as JSON, one object per line.")
def command(
    directory: Path, names: tuple[str, ...], *, link: bool, trust_remote_code: bool, compile_cache: bool, as_json: bool
) -> None:
    """Copy models from a bundle into the model store (OLLAMA_MODELS).

    DIRECTORY is a bundle that `vllama stage` wrote. Copies the models with these NAMES, or every model. The checksum of
    every file is verified, and a model is stored only when it is complete. A running server with the same store can
    serve it at once.
    """
    models = [ModelName.parse(name) for name in names]
    from vllama.store.load import load

    steps = load(
        open_store(), directory, models, link=link, trust_remote_code=trust_remote_code, compile_cache=compile_cache
    )
    report(steps, as_json=as_json)
