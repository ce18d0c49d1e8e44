"""`vllama usage`: show the usage of API keys."""

from __future__ import annotations

import csv
import io
import os
import re
import time
from collections.abc import Sequence

import click

from vllama import settings_file
from vllama.cli.output import print_json, table
from vllama.keys.usage import GROUPS, HOUR, Usage, read_usage

_SPAN = re.compile(r"(\d{1,6})([hdw])")
_UNITS = {"h": HOUR, "d": 24 * HOUR, "w": 7 * 24 * HOUR}
_NUMBERS = ("requests", "prompt_tokens", "cached_tokens", "output_tokens", "seconds")


def _seconds(ctx: click.Context, param: click.Parameter, value: str) -> int:  # noqa: ARG001
    found = _SPAN.fullmatch(value)
    if found is None:
        message = f"{value!r} is no span such as 24h, 7d or 4w"
        raise click.BadParameter(message)
    return int(found[1]) * _UNITS[found[2]]


def _groups(ctx: click.Context, param: click.Parameter, value: str) -> tuple[str, ...]:  # noqa: ARG001
    names = tuple(dict.fromkeys(name.strip() for name in value.split(",") if name.strip()))
    unknown = [name for name in names if name not in GROUPS]
    if unknown:
        message = f"{unknown[0]!r} is not one of {', '.join(GROUPS)}"
        raise click.BadParameter(message)
    return names


@click.command(
    "usage",
    epilog="""\b
Examples:
  vllama usage
  vllama usage --since 30d --by key,day --csv > usage.csv
  vllama usage --since 24h --by model --json""",
)
@click.option(
    "--since", callback=_seconds, default="7d", show_default=True, metavar="SPAN",
    help="How far back, in hours, days or weeks; begins with a full hour.",
)  # fmt: skip
@click.option(
    "--by", callback=_groups, default="key,model", show_default=True, metavar="NAMES",
    help="What to group by, comma-separated: key, model, day (UTC).",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the usage as JSON.")
@click.option("--csv", "as_csv", is_flag=True, help="Print the usage as CSV.")
def command(since: int, by: tuple[str, ...], *, as_json: bool, as_csv: bool) -> None:
    """Show requests, tokens and seconds by key and model.

    Prompt tokens include cached ones. Seconds add up from each request's arrival to the end of its reply. Requests to a
    server without keys are not recorded. A running server writes about once a second to the database that VLLAMA_USAGE
    names; by default, usage.sqlite3 in the model store.
    """
    if as_json and as_csv:
        message = "--json and --csv cannot be used together"
        raise click.UsageError(message)
    usage = read_usage(settings_file.load(os.environ).usage_file, time.time() - since, by)
    if as_json:
        print_json([_record(row, by) for row in usage])
    elif as_csv:
        click.echo(_csv(usage, by), nl=False)
    else:
        click.echo(usage_table(usage, by))


def usage_table(usage: Sequence[Usage], by: Sequence[str]) -> str:
    """Return the table of usage."""
    header = [name.replace("_", " ").upper() for name in (*by, *_NUMBERS)]
    return table(header, [[*row.group, *_numbers(row)] for row in usage])


def _csv(usage: Sequence[Usage], by: Sequence[str]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*by, *_NUMBERS])
    writer.writerows([*row.group, *_numbers(row)] for row in usage)
    return out.getvalue()


def _numbers(row: Usage) -> list[str]:
    return [*(str(getattr(row, name)) for name in _NUMBERS[:-1]), f"{row.seconds:.1f}"]


def _record(row: Usage, by: Sequence[str]) -> dict[str, object]:
    values = {name: getattr(row, name) for name in _NUMBERS}
    return {**dict(zip(by, row.group, strict=True)), **values, "seconds": round(row.seconds, 3)}
