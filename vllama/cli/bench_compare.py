"""`vllama bench compare`: compare a result with an earlier one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from vllama.cli.bench_output import read_result
from vllama.cli.output import print_json, table

if TYPE_CHECKING:
    from vllama.bench.baseline import BaselineComparison
    from vllama.bench.result import Comparison

_SLOWER = 1
_RESULT = click.Path(exists=True, dir_okay=False, path_type=Path)


def _share(_ctx: click.Context, _param: click.Parameter, text: str | None) -> float | None:
    """Read a share of 1: `5%` or `0.05`."""
    if text is None:
        return None
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise click.BadParameter(f"{text!r} is not a share such as 5% or 0.05")
    return share


@click.command("compare")
@click.argument("before", type=_RESULT, metavar="BEFORE.json")
@click.argument("after", type=_RESULT, metavar="AFTER.json")
@click.option(
    "--fail-if", callback=_share, metavar="SHARE",
    help=f"Exit with {_SLOWER} if a figure of AFTER is worse by more than this (5%), beyond doubt.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON.")
@click.pass_context
def command(ctx: click.Context, before: Path, after: Path, fail_if: float | None, as_json: bool) -> None:
    """Compare two results, load by load.

    Each ratio is AFTER's figure over BEFORE's, with a bootstrap interval at 95 %. Where it holds 1, no difference
    is claimed. What else has changed between the two (machine, versions, flags, workload) is named.
    """
    from vllama.bench.baseline import compare_with_baseline

    names = (after.stem, before.stem) if after.stem != before.stem else ("after", "before")
    found = compare_with_baseline(read_result(after), read_result(before), names)
    failures = found.failures(fail_if) if fail_if is not None else []
    if as_json:
        _print_json(found, failures)
    else:
        _print_text(found, failures, fail_if)
    if failures:
        ctx.exit(_SLOWER)


def _print_text(found: BaselineComparison, failures: list[Comparison], fail_if: float | None) -> None:
    from vllama.bench.result import LoadLevel

    rows = [
        (
            LoadLevel(c.mode, c.concurrency, c.rate).label,
            c.metric,
            f"{c.ratio:.3f}",
            f"{c.low:.3f} to {c.high:.3f}",
            c.verdict + (" (!)" if c in failures else ""),
        )
        for c in found.comparisons
    ]
    first = found.comparisons[0]
    click.echo(table(("load", "figure", f"{first.system} / {first.baseline}", "95 % interval", "verdict"), rows))
    if found.changes:
        click.echo("\nThese changed, too:")
        for change in found.changes:
            click.echo(f"  {change.what}: {change.before or 'nothing'} → {change.after or 'nothing'}")
    if fail_if is not None:
        count = len(failures)
        click.echo(f"\n{count or 'No'} figure{'s' * (count != 1)} worse by more than {100 * fail_if:g} %.")


def _print_json(found: BaselineComparison, failures: list[Comparison]) -> None:
    from dataclasses import asdict

    print_json(
        {
            "comparisons": [asdict(c) for c in found.comparisons],
            "changes": [asdict(change) for change in found.changes],
            "failures": [asdict(c) for c in failures],
        }
    )
