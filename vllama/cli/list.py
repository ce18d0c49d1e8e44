"""`vllama list`: list stored models."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import click

from vllama.cli.api_client import ApiClient, Record
from vllama.cli.output import human_size, human_time, parse_time, print_json, table

HEADER = ("NAME", "ID", "SIZE", "MODIFIED")


@click.command(
    "list",
    epilog="""\b
Examples:
  vllama list
  vllama list qwen
  vllama list --json | jq -r '.[].name'""",
)
@click.argument("prefix", default="")
@click.option("--json", "as_json", is_flag=True, help="Print the models as JSON.")
def command(prefix: str, *, as_json: bool) -> None:
    """List stored models (alias: ls).

    With PREFIX, lists only the models whose names begin with it.
    """
    models = named(ApiClient.from_environment().tags(), prefix)
    if as_json:
        print_json(models)
    else:
        click.echo(models_table(models, datetime.now(UTC)))


def named(models: Sequence[Record], prefix: str) -> list[Record]:
    """Return the models whose names begin with the prefix, ignoring case."""
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
