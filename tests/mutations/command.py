"""Plant faults and print which tests catch them: the command of `scripts/mutate`."""

from __future__ import annotations

import json
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import click

from mutations.runs import Copy, Result, run_engine_tests, run_own_tests, run_rest
from mutations.table import DoesNotApply, Fault, read_table

_EXAMPLES = """\b
Examples:
  scripts/mutate --list
  scripts/mutate gateway-lost-cancel worker-reply-off-by-one
  scripts/mutate --engine --json faults.json
"""


@click.command(epilog=_EXAMPLES)
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--list", "lists", is_flag=True, help="Print the faults and exit.")
@click.option("--own-only", is_flag=True, help="Run only the tests that a fault's row names.")
@click.option("--engine", is_flag=True, help="Run the engine module of each fault that no quick test catches.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="File to write the results to.")
def main(names: Sequence[str], *, lists: bool, own_only: bool, engine: bool, json_file: Path | None) -> None:
    """Plant faults in a copy of the code, one at a time, and print which tests catch them.

    The faults are in tests/mutations/faults.toml; without NAME all of them are planted. For each one the tests that its
    row names run first, then the rest of the quick suite. The exit status is 1 if a fault was not caught.
    """
    table = {fault.name: fault for fault in read_table()}
    if unknown := [name for name in names if name not in table]:
        raise click.UsageError(f"unknown faults: {', '.join(unknown)}; `scripts/mutate --list` prints their names")
    faults = [table[name] for name in names] or list(table.values())
    if lists:
        for fault in faults:
            click.echo(f"{fault.name:<40} {fault.means}")
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the copy is removed
    with tempfile.TemporaryDirectory(prefix="vllama-mutate-") as directory:
        copy = Copy.make(Path(directory) / "vllama")
        try:
            for fault in faults:
                fault.applied_to(copy.root)
        except DoesNotApply as error:
            raise click.ClickException(str(error)) from error
        results = _results(copy, faults, own_only=own_only, engine=engine)
    if copy.unreliable:
        click.echo(
            f"ignored, because they fail without a fault or only sometimes: {', '.join(sorted(copy.unreliable))}"
        )
    if json_file:
        json_file.write_text(json.dumps([result.to_record() for result in results], indent=2) + "\n")
    caught = Counter(result.stage for result in results if result.stage)
    click.echo(
        f"{caught.total()} of {len(results)} faults caught" + "".join(f"; {n} by {by}" for by, n in caught.items())
    )
    sys.exit(caught.total() < len(results))


def _results(copy: Copy, faults: Sequence[Fault], *, own_only: bool, engine: bool) -> list[Result]:
    results = []
    for fault in faults:
        results.append(run_own_tests(copy, fault))
        _show(results[-1])
    if not own_only and (missed := [result for result in results if not result.by]):
        click.echo(f"running the quick suite for {len(missed)} faults")
        run_rest(copy, missed)
        for result in missed:
            _show(result)
    for result in results if engine else ():
        if not result.by:
            run_engine_tests(copy, result)
            _show(result)
    return results


def _show(result: Result) -> None:
    click.echo(f"{result.fault.name:<40} {result.seconds:5.0f} s  {result.stage or 'not caught':<12}  {result.by}")


if __name__ == "__main__":
    main(prog_name="scripts/mutate")
