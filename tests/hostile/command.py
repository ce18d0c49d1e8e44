"""The command `scripts/hostile`."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import click
from engine.tiny import built_tiny, user_store

from hostile.attacks import KINDS, chosen
from hostile.campaign import Result, run, table
from vllama.names import ModelName
from vllama.store.model_store import ModelStore
from vllama.store.pull import pull

_MODEL = "tiny:latest"


@click.command()
@click.option("--number", default=len(KINDS), show_default=True, help="Number of attacks.")
@click.option("--seed", default=1, show_default=True, help="Random seed for the variants of the attacks.")
@click.option(
    "--only", multiple=True, type=click.Choice([kind.name for kind in KINDS]), help="Kind of attack; repeatable."
)
@click.option("--embedder", default="", help="Embedding model of the model store; without it one more client lists.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="File to write all results to.")
def command(number: int, seed: int, only: tuple[str, ...], embedder: str, json_file: Path | None) -> None:
    """Attack a server with a tiny model while five innocent clients use it, and print a table of the consequences.

    No innocent client may get an error or wait 2 seconds longer than without an attack; the gateway's memory must be
    back within 20 MiB, and nothing may be left. The exit status is 1 if one of these fails. The tiny model uses the
    tokenizer of smollm2:135m, which must be in the model store ($OLLAMA_MODELS).
    """
    with tempfile.TemporaryDirectory(prefix="vllama-hostile-") as directory:
        store = ModelStore(Path(directory) / "models")
        for _ in pull(store, ModelName.parse(_MODEL), from_path=built_tiny(Path(directory) / "tiny")):
            pass
        if embedder:
            store.put(user_store().get(ModelName.parse(embedder)))
        report = run(store.root, _MODEL, chosen(only), number, seed, _tell, embedder=embedder)
    if json_file is not None:
        json_file.write_text(json.dumps(report.as_json(), indent=1) + "\n")
    click.echo("\n".join(table(report)))
    for line in report.wrong:
        click.echo(f"WRONG: {line}", err=True)
    sys.exit(1 if report.wrong else 0)


def _tell(result: Result) -> None:
    errors = f", errors: {result.errors}" if result.errors else ""
    gateway = f"gateway {result.gateway >> 20} MiB"
    said = f"{result.kind}: {result.seconds:.1f} s, gap {result.gap:.2f} s, {result.replies} replies"
    click.echo(f"{said}, {gateway}{errors}", err=True)


if __name__ == "__main__":
    command()
