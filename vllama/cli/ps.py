"""`vllama ps`: the resident models."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import click

from vllama.cli.client import Client, Record
from vllama.cli.list import named
from vllama.cli.output import human_size, human_time, parse_time, print_json, table

HEADER = ("NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL")


@click.command(
    "ps",
    epilog="""\b
Examples:
  vllama ps
  vllama ps --json | jq -r '.[].expires_at'""",
)
@click.argument("prefix", default="")
@click.option("--json", "as_json", is_flag=True, help="Print the records as JSON.")
def command(prefix: str, *, as_json: bool) -> None:
    """List the models that are loaded now.

    With PREFIX, only those whose name begins with it.
    """
    models = named(Client.from_environment().ps(), prefix)
    if as_json:
        print_json(models)
    else:
        click.echo(residents_table(models, datetime.now(UTC)))


def residents_table(models: Sequence[Record], now: datetime) -> str:
    """Return the table that `ollama ps` prints."""
    rows = [
        (
            model["name"],
            model.get("digest", "")[:12],
            human_size(model.get("size", 0)),
            processor(model.get("size", 0), model.get("size_vram", 0)),
            str(model.get("context_length", 0)),
            _until(model.get("expires_at"), now),
        )
        for model in models
    ]
    return table(HEADER, rows)


def processor(size: int, size_vram: int) -> str:
    """Return where a model of so many bytes lies, as a share of CPU and GPU (contract §4.3)."""
    if size_vram == 0:
        return "100% CPU"
    if size_vram == size:
        return "100% GPU"
    if size_vram > size:
        return "Unknown"
    cpu = round((size - size_vram) / size * 100)
    return f"{cpu}%/{100 - cpu}% CPU/GPU"


def _until(expires_at: object, now: datetime) -> str:
    moment = parse_time(expires_at)
    if moment is not None and moment < now:
        return "Stopping..."
    return human_time(moment, now)
