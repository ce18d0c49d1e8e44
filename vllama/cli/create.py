"""`vllama create`: create a model from a Modelfile."""

from __future__ import annotations

from pathlib import Path

import click

from vllama.cli.local_store import open_store, precision_option
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
    help="Modelfile to read; - is standard input.",
)
@click.option("-q", "--quantize", default="", help="Fail unless the weights already use this quantization.")
@precision_option
@click.option("--json", "as_json", is_flag=True, help="Print progress as JSON, one object per line.")
def command(name: str, modelfile: Path, quantize: str, precision: str | None, *, as_json: bool) -> None:
    """Create a model from a Modelfile.

    FROM is a model, which is pulled if it is not stored, or the path of a GGUF file or Hugging Face snapshot directory.
    A second FROM is the path of the GGUF file with the model's vision tower (mmproj). ADAPTER is the path of a LoRA
    adapter. Paths are relative to the Modelfile. No server is needed; a running server with the same model store
    (OLLAMA_MODELS) can serve the model at once.
    """
    from dataclasses import replace

    from vllama.ollama.modelfile import decode, parse
    from vllama.scheduler.serving import Serving
    from vllama.store.create import create

    model = ModelName.parse(name)
    with click.open_file(modelfile, "rb") as file:
        said = parse(decode(file.read()))
    for warning in said.warnings:
        click.echo(f"warning: {warning}", err=True)
    directory = Path() if str(modelfile) == "-" else modelfile.parent
    path = _local(said.base, directory)
    projector = _local(said.projector, directory) if said.projector else None
    if said.projector and (path is None or projector is None):
        raise RequestError(f"FROM {said.projector}: a second FROM needs the paths of two GGUF files")
    adapter = directory / Path(said.adapter).expanduser() if said.adapter else None
    if adapter and not adapter.exists():
        raise RequestError(f"ADAPTER {said.adapter}: no such file or directory: {adapter}")
    store = open_store(precision)
    changes = replace(said.changes, quantize=quantize)
    steps = create(
        store,
        model,
        changes,
        base="" if path else said.base,
        path=path,
        projector_path=projector,
        adapter_path=adapter,
        check=Serving().check_adapter,
    )
    report(steps, as_json=as_json)


def _local(base: str, directory: Path) -> Path | None:
    """Return the path that FROM means; None if it is a model name."""
    path = directory / Path(base).expanduser()
    if path.exists():
        return path
    if base.startswith(("/", "./", "../", "~")) or base.endswith(".gguf"):
        raise RequestError(f"FROM {base}: no such file or directory: {path}")
    return None
