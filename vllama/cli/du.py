"""`vllama du`: show the disk space of the model store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vllama.cli.local_store import open_store
from vllama.cli.output import human_size, print_json, table

if TYPE_CHECKING:
    from vllama.store.usage import Usage

HEADER = ("NAME", "OWN", "SHARED", "OUTSIDE")


@click.command(
    "du",
    epilog="""\b
Examples:
  vllama du
  vllama du --json | jq .total""",
)
@click.option("--json", "as_json", is_flag=True, help="Print the sizes as JSON, in bytes.")
def command(*, as_json: bool) -> None:
    """Show the disk space of the model store (OLLAMA_MODELS).

    OWN is what `vllama rm` of that model alone would free; SHARED is used by several models; OUTSIDE is the size of
    model directories outside the store that are served in place. A file with several hard links counts once.
    """
    from vllama.store.usage import measure

    store = open_store()
    usage = measure(store)
    if as_json:
        print_json(_as_record(usage))
        return
    click.echo(_table(usage))
    unused = f", of which {human_size(usage.unused)} unused (free it with vllama gc)" if usage.unused else ""
    caches = f", {human_size(usage.caches)} compiled code (vllama gc --caches)" if usage.caches else ""
    click.echo(f"\n{human_size(usage.total)} in {store.root}{unused}{caches}")


def _table(usage: Usage) -> str:
    rows = [
        (model.name.display, *(human_size(size) for size in (model.own, model.shared, model.outside)))
        for model in usage.models
    ]
    return table(HEADER, rows)


def _as_record(usage: Usage) -> dict[str, object]:
    return {
        "models": [
            {"name": model.name.display, "own": model.own, "shared": model.shared, "outside": model.outside}
            for model in usage.models
        ],
        "total": usage.total,
        "unused": usage.unused,
        "caches": usage.caches,
    }
