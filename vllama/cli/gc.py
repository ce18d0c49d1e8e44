"""`vllama gc`: remove unused files from the model store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vllama.cli.local_store import open_store
from vllama.cli.output import human_size, print_json

if TYPE_CHECKING:
    from vllama.store.garbage import Item, Report


@click.command(
    "gc",
    epilog="""\b
Examples:
  vllama gc --dry-run
  vllama gc --partial
  vllama gc --caches
  vllama gc --json | jq .freed""",
)
@click.option("--dry-run", is_flag=True, help="Print what would be removed, without removing it.")
@click.option("--partial", is_flag=True, help="Also remove the files of interrupted pulls.")
@click.option("--caches", is_flag=True, help="Also remove compiled code of models that are not loaded.")
@click.option("--json", "as_json", is_flag=True, help="Print the removed and kept items as JSON.")
def command(*, dry_run: bool, partial: bool, caches: bool, as_json: bool) -> None:
    """Remove unused files from the model store (OLLAMA_MODELS).

    Removes the files and compiled code of models that no name refers to any more, uploads from which no model was
    created within an hour, and leftovers of killed processes. Safe while a server, pulls or creates are running: files
    that they use are kept.
    """
    from vllama.store.garbage import collect

    report = collect(open_store(), dry_run=dry_run, partial=partial, caches=caches)
    if as_json:
        print_json(_as_record(report))
    else:
        _tell(report, dry_run=dry_run)
    for failure in report.failed:
        click.echo(f"Error: {failure}", err=True)
    if report.failed:
        raise SystemExit(1)


def _tell(report: Report, *, dry_run: bool) -> None:
    for item in report.removed:
        click.echo(f"{'would remove' if dry_run else 'removed'} {item.kind} {item.path.name} ({human_size(item.size)})")
    for item, why in report.kept:
        click.echo(f"kept {item.kind} {item.path.name} ({human_size(item.size)}): {why}")
    click.echo(f"{'would free' if dry_run else 'freed'} {human_size(report.freed)}")


def _as_record(report: Report) -> dict[str, object]:
    return {
        "removed": [_item(item) for item in report.removed],
        "kept": [{**_item(item), "reason": why} for item, why in report.kept],
        "failed": report.failed,
        "freed": report.freed,
    }


def _item(item: Item) -> dict[str, object]:
    return {"kind": item.kind, "path": str(item.path), "size": item.size}
