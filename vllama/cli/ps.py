"""`vllama ps`: list loaded and sleeping models."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import click

from vllama.cli.api_client import ApiClient, Record
from vllama.cli.list import named
from vllama.cli.loading import load_text
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
@click.option("--json", "as_json", is_flag=True, help="Print the models as JSON.")
def command(prefix: str, *, as_json: bool) -> None:
    """List loaded and sleeping models.

    With PREFIX, lists only the models whose names begin with it.
    """
    models = named(ApiClient.from_environment().ps(asleep=True), prefix)
    if as_json:
        print_json(models)
    else:
        click.echo(residents_table(models, datetime.now(UTC)))


def residents_table(models: Sequence[Record], now: datetime) -> str:
    """Return the table of `ollama ps`, plus states and last log lines if the server reports them."""
    loads = [load_text(model) for model in models]
    states = [load or str(model.get("state", "")) for model, load in zip(models, loads, strict=True)]
    header = (*HEADER, "STATE") if any(states) else HEADER
    rows = [
        (
            model["name"] + (" (embeddings)" if model.get("embeds") else ""),
            model.get("digest", "")[:12],
            human_size(model.get("size", 0)),
            processor(model.get("size", 0), model.get("size_vram", 0)),
            str(model.get("context_length", 0)),
            "Loading..." if load else _until(model.get("expires_at"), now),
            state,
        )[: len(header)]
        for model, load, state in zip(models, loads, states, strict=True)
    ]
    said = [f"{model['name']}: {line}" for model in models if (line := (model.get("load") or {}).get("line"))]
    return "\n".join([table(header, rows), *(["", *said] if said else [])])


def processor(size: int, size_vram: int) -> str:
    """Return how a model of `size` bytes is divided between CPU and GPU, in percent (contract §4.3)."""
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
