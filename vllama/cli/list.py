"""`vllama list`: the stored models."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import click

from vllama.cli.client import Client, Record
from vllama.cli.output import human_size, human_time, parse_time, print_json, table

HEADER = ("NAME", "ID", "SIZE", "MODIFIED")


@click.command(
    "list",
    epilog="""\b
Examples:
  vllama list
  vllama list --json | jq -r '.[].name'""",
)
@click.argument("prefix", default="")
@click.option("--json", "as_json", is_flag=True, help="Print the records as JSON.")
def command(prefix: str, *, as_json: bool) -> None:
    """List the stored models. Also: ls.

    With PREFIX, only those whose name begins with it.
    """
    models = named(Client.from_environment().tags(), prefix)
    if as_json:
        print_json(models)
    else:
        click.echo(models_table(models, datetime.now(UTC)))


def named(models: Sequence[Record], prefix: str) -> list[Record]:
    """Return the models whose name begins with the prefix, whatever the case."""
    return [model for model in models if model["name"].lower().startswith(prefix.lower())]


def models_table(models: Sequence[Record], now: datetime) -> str:
    """Return the table that `ollama list` prints."""
    rows = [
        (
            model["name"],
            model.get("digest", "")[:12],
            human_size(model.get("size", 0)),
            human_time(parse_time(model.get("modified_at")), now),
        )
        for model in models
    ]
    return table(HEADER, rows)
