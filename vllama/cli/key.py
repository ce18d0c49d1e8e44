"""`vllama key`: create, list and revoke API keys."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime

import click

from vllama import settings_file
from vllama.cli.output import human_time, parse_time, print_json, table
from vllama.errors import KeysError
from vllama.keys.key import CLASSES, Key, new_key
from vllama.keys.key_file import KeyFile

HEADER = ("NAME", "MODELS", "REQUESTS/MIN", "TOKENS/DAY", "CLASS", "ADMIN", "CREATED")


@click.group(
    "key",
    epilog="""\b
Examples:
  vllama key create laptop
  vllama key create ci --models 'smollm2:*' --requests-per-minute 60 --class low
  vllama key list
  vllama key revoke laptop""",
)
def command() -> None:
    """Manage API keys.

    Once a key exists, the server refuses requests without one. A running server uses changes within a second. Keys are
    in the file that VLLAMA_KEYS names; by default, keys.json in the model store.
    """


@command.command(
    "create",
    epilog="""\b
Examples:
  vllama key create laptop
  vllama key create ci --models 'smollm2:*' --models 'qwen2.5*' --tokens-per-day 1000000
  OLLAMA_API_KEY=$(vllama key create operator --admin) vllama list""",
)
@click.argument("name")
@click.option("--models", multiple=True, metavar="GLOB", help="Models that the key may use; repeatable; default: all.")
@click.option(
    "--requests-per-minute",
    type=click.IntRange(1),
    metavar="N",
    help="Maximum number of requests to models per minute; beyond it clients get 429.",
)
@click.option(
    "--tokens-per-day",
    type=click.IntRange(1),
    metavar="N",
    help="Maximum number of prompt and output tokens per day (UTC); beyond it clients get 429.",
)
@click.option(
    "--class",
    "priority",
    type=click.Choice(list(CLASSES)),
    default="normal",
    show_default=True,
    help="Share of a busy model: high gets twice as much as normal, and normal twice as much as low.",
)
@click.option(
    "--admin", "is_admin", is_flag=True, help="Allow changes to the model store when VLLAMA_MANAGEMENT=admin."
)
@click.option("--json", "as_json", is_flag=True, help="Print the key and its rights as JSON.")
def create(
    name: str,
    models: tuple[str, ...],
    requests_per_minute: int | None,
    tokens_per_day: int | None,
    priority: str,
    *,
    is_admin: bool,
    as_json: bool,
) -> None:
    """Create a key and print it.

    The key is printed only now: the file holds its SHA-256.
    """
    try:
        secret, key = new_key(
            name,
            models=models,
            requests_per_minute=requests_per_minute or 0,
            tokens_per_day=tokens_per_day or 0,
            priority=priority,
            is_admin=is_admin,
        )
    except KeysError as error:
        raise click.UsageError(str(error)) from None
    file = _key_file()
    file.add(key)
    if as_json:
        print_json({"key": secret, **_shown(key)})
        return
    click.echo(f"added key '{name}' to {file.path}; keep the key, which is not shown again", err=True)
    click.echo(secret)


@command.command(
    "list",
    epilog="""\b
Examples:
  vllama key list
  vllama key list --json | jq -r '.[].name'""",
)
@click.option("--json", "as_json", is_flag=True, help="Print the keys as JSON.")
def list_keys(*, as_json: bool) -> None:
    """List the keys and what they allow, without their secrets."""
    keys = _key_file().read() or ()
    if as_json:
        print_json([_shown(key) for key in keys])
    else:
        click.echo(keys_table(keys, datetime.now(UTC)))


@command.command(
    "revoke",
    epilog="""\b
Examples:
  vllama key revoke laptop
  vllama key revoke ci operator --json""",
)
@click.argument("names", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print the revoked names as JSON.")
def revoke(names: tuple[str, ...], *, as_json: bool) -> None:
    """Revoke keys: the server refuses them within a second.

    Running requests continue. After the last key is revoked, the server refuses all requests.
    """
    _key_file().remove(names)
    if as_json:
        print_json({"revoked": list(names)})
        return
    for name in names:
        click.echo(f"revoked '{name}'")


def keys_table(keys: Sequence[Key], now: datetime) -> str:
    """Return the table of keys."""
    rows = [
        (
            key.name,
            ",".join(key.models) or "all",
            str(key.requests_per_minute or "no limit"),
            str(key.tokens_per_day or "no limit"),
            key.priority,
            "yes" if key.is_admin else "no",
            human_time(parse_time(key.created), now),
        )
        for key in keys
    ]
    return table(HEADER, rows)


def _key_file() -> KeyFile:
    return KeyFile(settings_file.load(os.environ).keys_file)


def _shown(key: Key) -> dict[str, object]:
    """Return the key as JSON values without its digest."""
    return {name: value for name, value in key.to_record().items() if name != "sha256"}
