"""`vllama create`: make a model of another one and a Modelfile."""

from __future__ import annotations

import os
from pathlib import Path

import click

from vllama import settings_file
from vllama.cli.progress import report
from vllama.errors import RequestError
from vllama.names import ModelName


@click.command(
    "create",
    epilog="""\b
Examples:
  vllama create mario -f Modelfile
  vllama show mario --modelfile | vllama create luigi -f -

\b
A Modelfile:
  FROM smollm2:135m
  PARAMETER temperature 0
  SYSTEM You are Mario.
  ADAPTER ./a-lora-adapter""",
)
@click.argument("name")
@click.option(
    "-f",
    "--file",
    "modelfile",
    default="Modelfile",
    show_default=True,
    type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
    help="The Modelfile; - is standard input.",
)
@click.option("-q", "--quantize", default="", help="Refuse the model unless its weights are on this level already.")
@click.option("--json", "as_json", is_flag=True, help="Print the progress as JSON, one object a line.")
def command(name: str, modelfile: Path, quantize: str, *, as_json: bool) -> None:
    """Make a model in the store (OLLAMA_MODELS) of another one and a Modelfile.

    FROM names a model, which is pulled if it is not there, or a GGUF file or Hugging Face snapshot directory, ADAPTER
    the directory of a LoRA adapter; paths are relative to the Modelfile. Needs no server; a running server with the
    same store knows the model at once.
    """
    from dataclasses import replace

    from vllama.ollama.modelfile import decode, parse
    from vllama.scheduler.serving import Serving
    from vllama.store.create import create
    from vllama.store.model_store import ModelStore

    model = ModelName.parse(name)
    with click.open_file(modelfile, "rb") as file:
        said = parse(decode(file.read()))
    for warning in said.warnings:
        click.echo(f"warning: {warning}", err=True)
    directory = Path() if str(modelfile) == "-" else modelfile.parent
    path = _local(said.base, directory)
    adapter = directory / Path(said.adapter).expanduser() if said.adapter else None
    if adapter and not adapter.exists():
        raise RequestError(f"ADAPTER {said.adapter}: there is no such file or directory ({adapter})")
    store = ModelStore(settings_file.load(os.environ).models)
    changes = replace(said.changes, quantize=quantize)
    steps = create(
        store,
        model,
        changes,
        base="" if path else said.base,
        path=path,
        adapter_path=adapter,
        check=Serving().check_adapter,
    )
    report(steps, as_json=as_json)


def _local(base: str, directory: Path) -> Path | None:
    """The file or directory that FROM means; None where it is a model's name."""
    path = directory / Path(base).expanduser()
    if path.exists():
        return path
    if base.startswith(("/", "./", "../", "~")) or base.endswith(".gguf"):
        raise RequestError(f"FROM {base}: there is no such file or directory ({path})")
    return None
